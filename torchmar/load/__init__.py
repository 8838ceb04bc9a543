"""Load on a running server: requests at given rates, measured latency with intervals, and reports."""
