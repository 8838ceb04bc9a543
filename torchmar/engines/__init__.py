"""Engines: what serves a model store. Each starts, waits until it is ready, and stops.

* `torchmar.engines.torchserve`: the real TorchServe, the reference.
"""
