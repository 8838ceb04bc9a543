"""The code of worker processes, which load an archive and run batches of requests.

Any Python that has TorchServe can run it: nothing here imports torchmar. `start.py`, beside this
package, runs it under a name of its own, so that no module of an archive meets one of these.

A worker starts in one of two ways::

    start.py RunWorker       one process, which loads and serves: torchmar run
    start.py RunForkServer   fork_server.py: has torch loaded, and forks
      └─ model_process.py: loads one model, then
           ├─ serves itself, or
           └─ forks: the workers of a model share the weights that were loaded once

Each of these processes has a supervisor above it (supervisor.py), which ends the processes that it leaves.
`messages.py` has all that these processes and the server send each other.
"""
