"""The form with which a person tries a model, made from the handler, its signature and the archive's samples."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from torchmar.archive.collecting import SAMPLES_FILE
from torchmar.server.api_error import ApiError

Kind = Literal["image", "text", "table", "other"]

_KINDS: Mapping[str, Kind] = {
    "image_classifier": "image",
    "image_segmenter": "image",
    "object_detector": "image",
    "text_classifier": "text",
    "text_embedder": "text",
    "token_classifier": "text",
    "tabular_classifier": "table",
    "tabular_regressor": "table",
}
# For a handler that is not torchmar's, the first sample determines the form.
_BY_TYPE: Mapping[str, Kind] = {"image": "image", "text": "text"}
_EXPLAINING = ("image_classifier", "text_classifier", "tabular_classifier", "tabular_regressor")
# Handlers whose predictions can be drawn over the image.
_DRAWING = ("image_segmenter", "object_detector")
_OCTETS = "application/octet-stream"
# Types in which browsers run no code; any other content of an archive is sent as bytes.
_SAFE_TYPES = frozenset(
    {"application/json", "text/plain", "text/csv", "image/png", "image/jpeg", "image/gif", "image/webp", "audio/x-wav"}
)
_LONGEST = 1 << 20  # size limit of the list of samples
_LARGEST_SAMPLE = 32 << 20  # bytes


class Version(Protocol):
    """The version of a form: a registered one (`torchmar.server.models.registry`), or one on another server."""

    name: str
    version: str
    archive: Any
    serving: Any
    pool: Any


def form(version: Version) -> dict[str, Any]:
    """Return the form of a version. Blocking: it reads files of the archive.

    Returns:
        ``kind`` (image, text, table or other), ``handler``, ``explains`` (None: unknown), ``pictures`` (whether
        predictions can be pictures), ``inputs`` and ``outputs`` (tensors of the signature), ``image`` (``mode`` and
        ``resize`` of an image handler, if it names them), ``labels`` (class names by index, or none), and ``samples``.
    """
    handler = version.serving.pool.handler
    name = handler.removesuffix(".py").rpartition(".")[2] if "torchmar_handlers" in handler else ""
    samples = [_sample(version, number, sample) for number, sample in enumerate(_samples(version))]
    first = next((sample["type"] for sample in samples), "")
    section = version.archive.config.get("handler")
    options = section if isinstance(section, dict) else {}
    described = version.pool.description
    return {
        "kind": _KINDS.get(name) or _BY_TYPE.get(first.partition("/")[0], "other"),
        "handler": handler,
        "explains": name in _EXPLAINING if name else any(sample["explain"] for sample in samples) or None,
        "pictures": name in _DRAWING,
        "inputs": described.get("inputs", []),
        "outputs": described.get("outputs", []),
        "image": {key: options[key] for key in ("mode", "resize") if key in options},
        "labels": _labels(version),
        "samples": samples,
    }


def sample(version: Version, number: str) -> tuple[dict[str, Any], bytes, str]:
    """Return a sample, its body and its content type. Blocking.

    Raises:
        ApiError: 400, ``number`` is not the number of a sample; 404, the sample does not exist, or its file cannot be
            read.
    """
    if not number.isascii() or not number.isdigit():
        raise ApiError(400, "BadRequestException", f"{number[:100]!r} is not the number of a sample.")
    sample = dict(enumerate(_samples(version))).get(int(number[:9]))
    if sample is None:
        raise ApiError(
            404, "ResourceNotFoundException", f"{version.name} {version.version} has no sample {number[:9]}."
        )
    return sample, *_body(version, number, sample)


def _body(version: Version, number: str, sample: Mapping[str, Any]) -> tuple[bytes, str]:
    if "input" not in sample:
        return json.dumps(sample.get("json"), indent=2, ensure_ascii=False).encode(
            "utf-8", "replace"
        ), "application/json"
    path = _inside(version.archive.folder, str(sample["input"]))
    try:
        if path is None or path.stat().st_size > _LARGEST_SAMPLE:
            raise ApiError(404, "ResourceNotFoundException", f"Sample {number} is larger than 32 MiB, or not a file.")
        return path.read_bytes(), _type(path.name)
    except OSError:
        raise ApiError(404, "ResourceNotFoundException", f"Sample {number} cannot be read.") from None


def _samples(version: Version) -> list[dict[str, Any]]:
    path = _inside(version.archive.folder, SAMPLES_FILE)
    try:
        if path is None or path.stat().st_size > _LONGEST:
            return []
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [sample for sample in document if isinstance(sample, dict)] if isinstance(document, list) else []


def _sample(version: Version, number: int, sample: Mapping[str, Any]) -> dict[str, Any]:
    name = str(sample.get("input") or "")
    path = _inside(version.archive.folder, name) if name else None
    return {
        "number": number,
        "name": Path(name).name if name else "JSON",
        "type": _type(name) if name else "application/json",
        "size": path.stat().st_size if path else None,
        "explain": bool(sample.get("explain")),
        "expect": sample.get("expect"),
        "status": sample.get("status", 200),
    }


def _labels(version: Version) -> dict[str, str]:
    path = _inside(version.archive.folder, "index_to_name.json")
    try:
        document = json.loads(path.read_bytes()) if path and path.stat().st_size <= _LONGEST else {}
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {
        str(index): str(label[-1] if isinstance(label, list) and label else label) for index, label in document.items()
    }


def _inside(folder: Path, name: str) -> Path | None:
    """Return a file of an archive; None if it does not exist, or is outside of the folder."""
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _type(name: str) -> str:
    guessed = mimetypes.guess_type(name)[0] or _OCTETS
    return guessed if guessed in _SAFE_TYPES else _OCTETS
