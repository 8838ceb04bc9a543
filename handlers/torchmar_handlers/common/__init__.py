"""The common parts of all handlers: batches, faults, forward passes, labels, options, replies."""
