"""Python imports this module when it starts: have a worker process forked by a process that has loaded torch.

See the package ``tests.support.preloaded``.
"""

import os
import sys

if (
    "TORCHMAR_TESTS_PRELOADED" in os.environ
    and len(sys.orig_argv) > 2
    and sys.orig_argv[1].endswith(("/ts/model_service_worker.py", "/torchmar/worker/start.py"))
):
    # Not by the name of its package, of which a worker is to see nothing, and without pathlib, which takes time.
    from importlib.util import module_from_spec, spec_from_file_location

    _spec = spec_from_file_location("_torchmar_tests_client", f"{__file__.rpartition('/startup/')[0]}/client.py")
    assert _spec
    assert _spec.loader
    _client = module_from_spec(_spec)
    _spec.loader.exec_module(_client)
    _client.run(os.environ["TORCHMAR_TESTS_PRELOADED"])
