"""Desired state for a server: compare it with the actual state, and apply the difference.

::

    deployment.yaml --desired--> Deployment ─┐
    a server --------live------> Live       ─┼─plan--> changes (a diff), steps --steps--> the server
    a model store ---shelf-----> Shelf      ─┤
    its GPUs --------gpus------> sizes      ─┘ (placement: which worker on which GPU)

What TorchServe 0.12.0 does with requests decides what a plan may do (seen by running it; the tests repeat it):

- Set-default loses nothing: a request goes to the one version or to the other.
- More workers lose nothing.
- Fewer workers lose what the removed ones are working at ("Worker died.", or no answer ever), and
  at no workers at all those who wait are never answered. So workers are taken only from a version
  that gets no more requests and has answered those that it had: `drain`.
- Unregister is the same: nobody who waits gets an answer.
- Batch size, delay, timeouts and GPUs of a registered version cannot be changed. A changed version
  is another build of it: ``2.1+b2`` beside ``2.1``, an archive derived with another configuration.
"""
