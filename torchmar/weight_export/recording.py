"""The examples of an archive: the inputs that its handler passes to the model for the samples."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torchmar.archive import Archive
from torchmar.errors import TorchmarError
from torchmar.optimizing import inputs
from torchmar.optimizing.steps import StepError, Steps

_MOST = 8  # largest number of samples: more make no difference
_SECONDS = 600.0
_MEMORY = 1 << 40  # so large that it is no limit, as for a worker


def record(archive: Path, folder: Path, shown: str, scratch: Path) -> Path:
    """Return the file of the calls that the handler sends to its model.

    Args:
        archive: archive with the handler and the samples.
        folder: folder where the archive is extracted.
        shown: name of the model in messages.
        scratch: folder for the file.

    Raises:
        TorchmarError: there are no samples, or no call can be recorded.
    """
    work = Path(tempfile.mkdtemp(prefix="recording-", dir=scratch))
    hint = "give an example: --example x.npy"
    with Archive(archive) as opened:
        requests = inputs.read(opened, None)[:_MOST]
        described = opened.manifest
        model: dict[str, Any] = {
            "name": described.name,
            "model_dir": str(folder),
            "handler": described.model.handler,
            "batch_size": int(opened.number("batchSize", 1)),
            "gpu": None,
            "envelope": described.model.envelope or "",
        }
    target = work / "calls.pt"
    job = {"model": model, "requests": list(inputs.write(requests, work)), "target": str(target)}
    try:
        recorded = Steps(work, memory=_MEMORY).run("capture", job, seconds=_SECONDS)
    except StepError as error:
        raise TorchmarError(f"{shown}: the inputs of its model cannot be recorded: {error}", hint=hint) from None
    if not recorded["inputs"]:
        reason = f": {recorded['rejected'][0][1]}" if recorded["rejected"] else ""
        raise TorchmarError(f"{shown}: its handler does not call its model for the samples{reason}", hint=hint)
    return target
