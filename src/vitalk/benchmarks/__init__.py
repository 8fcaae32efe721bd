"""What ``vitalk bench`` measures: systems against peers and each other, in one run."""
