"""The published systems, one folder each, named by their slugs."""
