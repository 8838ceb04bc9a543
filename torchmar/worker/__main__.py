"""``python -m torchmar.worker ARCHIVE [FILE...]``: run requests from files in this process, for a debugger.

`Worker` runs the same code in a separate process, in which ``breakpoint()`` has no terminal. Here the handler runs in
the main thread, with this terminal, which shows its output and logs at once.
"""

from __future__ import annotations

import argparse
import os
import pdb
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchmar import exchange
from torchmar.archive import Archive
from torchmar.errors import TorchmarError
from torchmar.exchange import Request
from torchmar.worker import request_headers
from torchmar.worker.environment import worker_environment
from torchmar.worker.process import loading, serving
from torchmar.worker.process.batch_runner import BatchRunner, Parts
from torchmar.worker.process.handler_metrics import MetricsBuffer
from torchmar.worker.process.messages import Batch, ModelSpec


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the archive, run the files in order; return the exit status."""
    options = _parser().parse_args(arguments)
    os.environ.update(worker_environment(os.environ))
    serving.quiet_logging()
    try:
        requests = [(file, exchange.read(file, explain=options.explain)) for file in options.files]
        with tempfile.TemporaryDirectory(prefix="torchmar-worker-") as folder, Archive(options.archive) as archive:
            runner = _load(archive, Path(folder) / "model", options)
            if runner is None:
                return 1
            print(f"loaded {archive.manifest.name} {archive.manifest.version}", flush=True)
            failed = 0
            for file, request in requests:
                failed += _run(runner, file, request)
    except TorchmarError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return 1
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchmar.worker",
        description="Load an archive in this process and run requests, so that breakpoint() works in its handler.",
    )
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="the .mar file or folder")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="request bodies; none: load only")
    parser.add_argument("--explain", action="store_true", help="request explanations instead of predictions")
    parser.add_argument("--gpu", type=int, help="the device that the handler gets (default: the CPU)")
    parser.add_argument("--pdb", action="store_true", help="open the debugger if loading fails")
    return parser


def _load(archive: Archive, folder: Path, options: argparse.Namespace) -> BatchRunner | None:
    """Return the loaded model; None if the handler fails; its traceback is then printed."""
    archive.extract(folder)
    manifest = archive.manifest
    if archive.runtime:
        print("note: the archive's own environment is not used: this process has its own packages", file=sys.stderr)
    model = ModelSpec(
        name=manifest.name,
        model_dir=str(folder),
        handler=manifest.model.handler,
        batch_size=int(archive.number("batchSize", 1)),
        gpu=options.gpu,
        envelope=manifest.model.envelope or "",
    )
    before = os.getcwd()  # noqa: PTH109
    loading.activate_archive(model.model_dir)
    try:
        MetricsBuffer().install()
        service = loading.load(model)
    except Exception as error:
        print(loading.own_traceback(error), end="", file=sys.stderr)
        if options.pdb:
            pdb.post_mortem(error.__traceback__)
        os.chdir(before)
        return None
    return BatchRunner(service, Parts(_print_part), isolate=False)


def _print_part(_: Any, bodies: Sequence[bytes]) -> None:
    print(*(bytes(body).decode("utf-8", "replace") for body in bodies), flush=True)


def _run(runner: BatchRunner, file: Path, request: Request) -> bool:
    """Print the response to one request; return whether it is an error."""
    batch: Batch = [("1", request_headers(request), [("body", request.content_type, len(request.body))])]
    ((status, content_type, _, body, _),), seconds = runner.run(batch, [memoryview(request.body)])
    data = bytes(body)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = f"{len(data)} bytes of {content_type or 'an unnamed type'}"
    print(f"{file}: {status}, {1000 * seconds:.1f} ms\n{text}", flush=True)
    return int(status) >= 400


if __name__ == "__main__":
    sys.exit(main())
