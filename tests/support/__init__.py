"""Helpers of the tests: what several test modules share."""
