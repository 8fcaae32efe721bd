"""Which frames belong to which symbol: the search, an aligner that learns it, durations kept on disk."""
