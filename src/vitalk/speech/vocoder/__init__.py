"""Vocoders: from log-mel spectrograms to sound, their training and their baselines. Importing this needs no torch."""
