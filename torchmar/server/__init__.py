"""The built-in server: TorchServe's APIs, archives and configuration, in one process and its workers.

From the top down; a package only imports packages below it (a test checks this)::

    app.py      the composition root: configuration to listeners and loaded models, graceful end
    grpc/       the services over gRPC
    api/        routes and documents over HTTP; contents and texts that gRPC shares with it
    models/     registry, serving configuration, archive cache, startup and snapshots
    workers/    queue and batching of a version, fork server, model processes and workers
    config/     keys, values and settings of config.properties
    telemetry/  logs, metrics, statistics, the history and the events of the console
    http/       bytes to requests, responses to bytes

``console/`` has the files of the console's page. Below these are modules that all packages may import: ``sessions``,
``tokens``, ``api_error``, ``background_tasks`` and others.

All of it runs in one event loop, in one thread; blocking calls run in other threads. A request is parsed once and
passes unchanged through the queue of its version to a worker; the response is sent as the worker wrote it.
"""
