"""Helpers of the tests, shared by several test modules."""
