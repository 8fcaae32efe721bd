"""Speech: text to phonemes, audio features, alignment, vocoders, evaluation, and the Voice that speaks."""
