"""Tests with the real TorchServe, or with both engines."""
