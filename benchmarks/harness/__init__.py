"""What `benchmarks/serving.py` is made of: models, sides that serve them, load, measurements, report."""
