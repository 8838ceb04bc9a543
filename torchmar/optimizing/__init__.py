"""Faster weights for an archive: variants are made, compared with the original's answers, and timed."""
