"""Find the number of workers, the threads and the batch size with which an archive meets a latency target.

Few settings are measured: most are predicted.

* `torchmar.tuning.target`: the target, ``p99<50ms``, and what is optimised within it;
* `torchmar.tuning.service_model`: the time of a batch against its size, fitted to measured batches;
* `torchmar.tuning.simulation`: the queues and workers of a server, simulated.
"""
