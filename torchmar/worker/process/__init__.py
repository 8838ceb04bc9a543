"""The code of worker processes, which load an archive and run batches of requests.

It runs in any Python with TorchServe, because it does not import torchmar. `start.py`, beside this package, runs it
under a separate name, so that its modules cannot conflict with those of an archive.

A worker starts in one of two ways::

    start.py RunWorker       one process, which loads and serves: torchmar run
    start.py RunForkServer   fork_server.py: has torch loaded, and forks
      └─ model_process.py: loads one model, then
           ├─ serves itself, or
           └─ forks: the workers of a model share the weights that were loaded once

Each of these processes has a supervisor as its parent (supervisor.py), which ends the processes that it leaves behind.
`messages.py` has all messages between these processes and the server.
"""
