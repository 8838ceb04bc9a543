"""Python imports this module when it starts: it requests a fork from a process that has loaded the packages.

See the package ``tests.support.preloaded``.
"""

import gc
import os
import sys

# With Python's thresholds, garbage collections take a quarter of the time of the imports of torch and of torchmar.
gc.set_threshold(50_000, 20, 20)


def _kind() -> str:
    """Return the kind of this process; empty: it is not forked."""
    first, second, *_ = (*sys.orig_argv[1:], "", "")
    if first.endswith(("/ts/model_service_worker.py", "/torchmar/worker/start.py")):
        return "WORKERS"
    # These are separate processes if workers are.
    if first == "-m" and second in ("torchmar.server", "torchmar.deployment.job"):
        return "COMMANDS" if "TORCHMAR_TESTS_WORKERS" in os.environ else ""
    if (first == "-m" and second == "torchmar") or first.endswith("/bin/torchmar"):
        return "COMMANDS"
    if first == "-m" and second in ("torchmar.cli.archiver", "model_archiver.model_packaging"):
        return "COMMANDS"
    if first.endswith("/scripts/pipeline.py"):
        return "COMMANDS"
    if first == "-m" and second in ("torchmar.worker", "torchmar.optimizing.process"):
        return "WORKERS"
    # The doctor's, and an example of a document, with the packages of a worker.
    if first == "-c" and second.startswith(("import torch, ", "import json, torch;")):
        return "WORKERS"
    if first.endswith("/tests/support/keras_models.py"):
        return "CONVERSIONS"
    package, _, module = second.rpartition(".")
    if first != "-m" or package != "torchmar.conversion":
        return ""
    return "CONVERSIONS" if module == "keras_program" else "EXPORTS"


if (_kind_of_this := _kind()) and (_path := os.environ.get(f"TORCHMAR_TESTS_{_kind_of_this}")):
    # Not by the name of its package, which the process must not see, and without importlib.util, which takes time.
    from _frozen_importlib_external import SourceFileLoader

    _file = f"{__file__.rpartition('/startup/')[0]}/client.py"
    _client = type(sys)("_torchmar_tests_client")
    _code = SourceFileLoader(_client.__name__, _file).get_code(_client.__name__)
    assert _code
    exec(_code, _client.__dict__)
    _client.run(_path)
