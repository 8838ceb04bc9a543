"""Tests with torch, worker processes and processes of the command line."""
