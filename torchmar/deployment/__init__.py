"""Desired state for a server: compare it with the actual state, and apply the difference.

::

    deployment.yaml --desired.py-----> Deployment  ─┐
    a server --------actual.py------> LiveModel   ─┼─ plan.py --> actions -- executor.py --> the server
    a model store ---store_index.py-> StoreIndex  ─┤
    its GPUs --------gpus.py--------> sizes       ─┘ (placement.py: which worker on which GPU)

What TorchServe 0.12.0 does with requests decides what a plan may do (seen by running it; the tests repeat it):

- Set-default loses nothing: a request goes to the one version or to the other.
- More workers lose nothing.
- Fewer workers lose the requests of the removed ones ("Worker died.", or no answer ever), and without
  workers requests in the queue are never answered. So workers are removed only from a version
  that gets no more requests and has answered those that it had: `drain`.
- Unregister is the same: requests in the queue get no answer.
- Batch size, delay, timeouts and GPUs of a registered version cannot be changed. A changed version
  is another build of it: ``2.1+b2`` beside ``2.1``, an archive derived with another configuration.
"""
