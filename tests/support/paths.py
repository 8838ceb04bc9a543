"""Paths in the repository."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
DIGITS = ROOT / "archives" / "digits"
SAMPLES = DIGITS / "samples"
