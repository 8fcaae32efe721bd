"""Judges of speech: words heard, whose voice, how clean, how close to a reference; and one report of them all."""
