"""The requests of a measurement, with the expected answers: from an archive, a recipe, a folder or a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torchmar import exchange, recipe, strict_yaml
from torchmar.archive import Archive
from torchmar.errors import TorchmarError
from torchmar.exchange import Request, content_type
from torchmar.recipe import Sample

_ARCHIVES = (".mar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Case:
    """A request with the sample of its archive; None: the request is a file without a sample."""

    name: str
    request: Request
    sample: Sample | None = None


@dataclass(frozen=True)
class Workload:
    """The requests of a measurement, which are sent in turn, with the file or folder of their source."""

    source: str
    cases: tuple[Case, ...]

    @property
    def mean_bytes(self) -> int:
        """The mean size of a body."""
        return sum(len(case.request.body) for case in self.cases) // len(self.cases)


def read(path: Path, *, explain: bool = False) -> Workload:
    """Return the requests at a path.

    Args:
        path: an archive or the folder of a recipe, for its samples; another folder, for its files, with the samples of
            a recipe beside it that name them; or a file, for this one.
        explain: whether to use the samples with explanations, and to request explanations for files, instead of
            predictions.

    Raises:
        TorchmarError: the path does not exist or has no requests.
    """
    if not path.exists():
        raise TorchmarError(
            f"{path} does not exist; requests are read from it", hint="--requests archives/NAME, or a folder of inputs"
        )
    if path.is_file() and path.name.endswith(_ARCHIVES):
        with Archive(path) as archive:
            cases = _of_samples(archive.samples, archive.read, explain)
    elif (path / recipe.FILE_NAME).is_file():
        samples = _samples(path)
        cases = _of_samples(samples, lambda name: _content(path / name), explain)
    elif path.is_dir():
        cases = _of_files(_files(path), path, explain)
    else:
        cases = _of_files([path], path.parent, explain)
    if not cases:
        kind = "explanations" if explain else "predictions"
        raise TorchmarError(
            f"{path} has no requests for {kind}", hint="name a folder with inputs, or an archive that has samples"
        )
    return Workload(str(path), tuple(cases))


def _of_samples(samples: Iterable[Sample], content: Callable[[str], bytes], explain: bool) -> list[Case]:
    cases = []
    for number, sample in enumerate(samples, 1):
        if sample.explain != explain:
            continue
        if sample.input is None:
            body = json.dumps(sample.json_body).encode()
            cases.append(Case(f"sample {number}", Request(body, "application/json", explain), sample))
        else:
            request = Request(content(sample.input), content_type(sample.input), explain)
            cases.append(Case(Path(sample.input).name, request, sample))
    return cases


def _of_files(files: Iterable[Path], folder: Path, explain: bool) -> list[Case]:
    """Return the requests of files in a folder; a recipe above the folder contains the expected answers."""
    above = folder.resolve().parent
    samples = {
        (above / sample.input).resolve(): sample
        for sample in (_samples(above) if (above / recipe.FILE_NAME).is_file() else ())
        if sample.input is not None and sample.explain == explain
    }
    return [Case(file.name, exchange.read(file, explain=explain), samples.get(file.resolve())) for file in files]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise TorchmarError(f"{folder} cannot be read: {error.strerror}") from None


def _samples(folder: Path) -> list[Sample]:
    """Return the samples of a recipe, whose weights need not exist."""
    file = folder / recipe.FILE_NAME
    return list(recipe.parse(strict_yaml.read(file, "its samples have the expected answers"), str(file)).samples)


def _content(file: Path) -> bytes:
    return exchange.read(file).body
