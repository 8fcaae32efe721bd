"""Parts of acoustic models: from symbols and durations to spectrograms."""
