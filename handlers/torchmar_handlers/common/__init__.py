"""The common parts of all handlers: batches, faults, forward passes, options, replies."""
