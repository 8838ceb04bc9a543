"""Versions whose workers are replicas of Ray Serve, on the nodes of a cluster.

The front is the built-in server, with its APIs, its registry and its archives. Only its pools of workers differ::

    client ─> front: api, registry ─> pool.py: dispatcher.py ── link.py ──frames── listener.py <── replica.py, any node
                                        │                                             its own Pool of one worker process
                                        │ application.py: deploys, deletes            ▲
                                        ▼                                             │ starts, restarts, counts
                                      session.py ──────────────> Ray Serve's controller
                                        ▲
                                        └──reads── directory.py <──announce── replicas

* A version is one application of Ray Serve with one deployment. The number of its workers is that of its replicas; with
  more ``max_workers`` than ``min_workers``, Ray Serve chooses it between them by the requests of all fronts, which
  replicas report (`autoscaling`).
* Ray places, supervises and lists replicas. Requests do not pass through it, which takes milliseconds of CPU time for
  each: a front connects to every replica (`channel`), keeps the requests that wait (`dispatcher`), and sends at most
  two batches to a replica, to one that has the fewest (`balancer`).
* A replica has a pool of the built-in server (`torchmar.server.workers.pool`) with one worker, so that batches, errors,
  * Replicas of a version on one node share the loaded model, as the workers of the built-in server do: a process that
belongs to no replica loads the model, forks their workers, and ends with the last of them (`node_loader`,
  belongs to none of them loads the model, forks their workers, and ends with the last of them (`node_loader`,
  `loader_process`). Replicas with a GPU load by themselves.
* A replica that ends answers the requests that it has, and fronts send it no others. The requests of a lost replica are
  sent to another one, unless their clients have parts of the answer.
* Replicas announce themselves to the directory, an actor that all fronts share: their node, their address with the
  secret of the connection, the state of their model or its traceback, and their log lines. Ray Serve's own status
  contains none of this.
* One front leads: it deploys and deletes, and publishes its models in the directory. The other fronts follow it, with
  pools that they do not own (`fronts`), and forward to it each request that changes models (`forwarding`, `calls`).
  Replicas outlive every front except the last one that is stopped.
* The content of an archive is packed once, and copied to a node once, by its digest, from the front's disk or through
  Ray's object store; it is compared with the digest before any of its code runs (`node_contents`).
* A request whose deadline cannot be met is refused by the front, with the estimate of the built-in server
  (`torchmar.server.workers.batch_times`) over the times that links measure.
* Replicas that fit no node are an error at once, with numbers (`capacity`); Ray Serve would wait forever.
* An application that another program deletes is deployed again by the leading front.
* Without the head, Ray ends after a minute: a front reports this, and ends with an error shortly before (`head`).
"""
