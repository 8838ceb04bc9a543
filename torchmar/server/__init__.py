"""The built-in server: TorchServe's APIs, archives and configuration, in one process and its workers.

From the top down; a package imports only from those below it (a test checks it)::

    app.py      the composition root: configuration to listeners and loaded models, graceful end
    grpc/       the services over gRPC
    api/        routes and documents over HTTP; contents and texts that gRPC has in common with it
    models/     registry, serving configuration, archive cache, startup and snapshots
    workers/    queue and batching of a version, fork server, model processes and workers
    config/     keys, values and settings of config.properties
    telemetry/  logs, metrics, statistics, the history and the events of the console
    http/       bytes to requests, responses to bytes

``console/`` has the files of the console's page. Below these are modules that all may import: ``sessions``,
``tokens``, ``api_error``, ``background_tasks`` and others.

All of it runs in one event loop, in one thread; blocking calls run in threads of their own. A request is parsed
once, passes the queue of its version to a worker unchanged, and the response is what the worker wrote.
"""
