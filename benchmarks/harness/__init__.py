"""The parts of `benchmarks/serving.py`: models, servers under test, load, measurements, report."""
