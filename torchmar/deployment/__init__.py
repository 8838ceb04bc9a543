"""Desired state for a server: compare it with the actual state, and apply the difference.

::

    deployment.yaml --desired.py-----> Deployment  ─┐
    a server --------actual.py------> LiveModel   ─┼─ plan.py --> actions -- executor.py --> the server
    a model store ---store_index.py-> StoreIndex  ─┤
    its GPUs ------------------------> sizes       ─┘ (placement.py: the GPU of each worker)

Plans depend on how TorchServe 0.12.0 handles requests (found by experiment; the tests repeat it):

- Setting the default loses no request: each is answered by the old or the new version.
- Adding workers loses no request.
- Removing workers loses their requests ("Worker died.", or no answer), and without workers, requests in the
  queue are never answered. Therefore workers are removed only from a version that gets no more requests and has
  answered all of its own: `drain`.
- Unregistering is the same: requests in the queue get no answer.
- Batch size, delay, timeouts and GPUs of a registered version cannot be changed. A changed version
  is another build of it: ``2.1+b2`` beside ``2.1``, an archive derived with another configuration.
"""
