"""Faster weights for an archive: variants are made, held to the original's answers, and measured."""
