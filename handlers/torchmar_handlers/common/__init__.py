"""What the handlers share for requests of every kind: batches, faults, forward passes, options, replies."""
