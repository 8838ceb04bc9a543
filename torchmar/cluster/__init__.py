"""Versions whose workers are replicas of Ray Serve, on the nodes of a cluster.

The front is the built-in server: its APIs, its registry, its archives. Only its pools are others::

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
  deadlines, streams and restarts are those of the built-in server. Requests of all fronts meet in its batches.
* Replicas of a version on one node share what is loaded, as the workers of the built-in server do: a process that
  belongs to none of them loads the model, forks their workers, and ends with the last of them (`node_loader`,
  `loader_process`). Replicas with a GPU load by themselves.
* A replica that ends answers the requests that it has, and fronts send it no others. Requests of one that is lost are
  sent to another, unless their clients have parts of the answer.
* Replicas announce themselves to the directory, an actor that all fronts share: where they run and listen, with the
  secret of the connection, whether their model is loaded, or the traceback, and what they log. Ray Serve's own status
  knows none of these.
* One front leads: it deploys and deletes, and publishes what it serves in the directory. The others follow it, with
  pools that they do not own (`fronts`), and forward to it what changes something (`forwarding`, `calls`). Replicas
  outlive every front but the last one that is stopped.
* The content of an archive is packed once, and copied to a node once, by its digest, from the front's disk or through
  Ray's object store; it is compared with the digest before anything of it runs (`node_contents`).
* A request whose deadline cannot be met is refused by the front, with the estimate of the built-in server
  (`torchmar.server.workers.batch_times`) over the times that links measure.
* What fits no node is an error at once, with numbers (`capacity`); Ray Serve waits without an end.
* An application that another program deletes is deployed again by the leading front.
* Without the head, Ray ends after a minute: a front reports it, and ends a little earlier, with an error (`head`).
"""
