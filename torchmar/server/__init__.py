"""The built-in server: TorchServe's APIs, archives and configuration, in one process and its workers.

::

    http/       bytes <-> requests                      rpc/   the same over gRPC
      inference.py   management.py   metrics.py         who may ask: tokens.py
            │              │
            └── registry.py: models and versions ── options.py: what they are served with
                       │      │          └───────── sources.py: where their archives are
                       │      └── startup.py: how far the models of the start are; snapshots.py: written down
                    pool.py: the queue and the workers of a version
                       ├── awake.py: not to fall asleep over a request that is answered at once
                       └── processes.py: a nursery, cradles, forks  (torchmar.worker.process)

All of it runs in one loop, in one thread; what blocks runs in threads of its own. A request is parsed
once, goes through the queue of its version to a worker as it came, and its answer goes back as the worker wrote it.
"""
