"""Tests without torch, training, worker processes and servers: ``scripts/test --fast``."""
