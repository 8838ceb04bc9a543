"""The parts of `benchmarks/serving.py`: models, servers to measure, load, measurements, report."""
