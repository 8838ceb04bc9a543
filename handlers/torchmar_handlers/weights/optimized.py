"""Optimised weights beside the original ones: the weights that are served, and those for explanations.

The section ``optimized`` in the options of a handler names weights that are faster on some machines. They are served
if the machine has the necessary features and they load. Otherwise the original weights are served, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from torchmar_handlers import weights
from torchmar_handlers.weights import machine
from torchmar_handlers.weights.formats import identify
from torchmar_handlers.weights.load_error import LoadError, summary
from torchmar_handlers.weights.optimizations import Optimizations

logger = logging.getLogger(__name__)

SECTION = "optimized"

_OWN = ("weights", "needs")
_OPTIONS = ("dtype", "channels_last", "freeze", "optimize_for_inference", "compile", "providers")
_DIGESTS = Path("MAR-INF", "SHA256SUMS")
_PROOF = Path(SECTION, "proof.json")  # the report of torchmar optimize


@dataclass(frozen=True)
class Explaining:
    """The model for explanations.

    Attributes:
        model: model as a module.
        dtype: type to which its floats are converted; None: they are unchanged.
        weights: ``original`` if it is not the model that is served; else None.
    """

    model: nn.Module
    dtype: torch.dtype | None
    weights: str | None = None


class ServedWeights:
    """The weights of an archive.

    Attributes:
        model: model for predictions.
        dtype: type to which its floats are converted, float16 or bfloat16; None: they are unchanged.
        optimized: whether the model has the optimised weights.
        file: file of its weights in the archive; None: it has none.
        reason: the reason why the optimised weights are not served; empty: they are, or there are none.
    """

    def __init__(
        self,
        model: nn.Module,
        file: str | None,
        load_original: Callable[[], nn.Module] | None = None,
        reason: str = "",
    ) -> None:
        self.model, self.file, self.reason = model, file, reason
        self.dtype = _half(model)
        self.optimized = load_original is not None
        self._load_original = load_original
        self._explaining: Explaining | None = None
        self._lock = threading.Lock()

    def explaining(self) -> Explaining:
        """Return the model for explanations: the served model if it has gradients, else the original.

        The original is loaded in the first call. If it has no gradients either, the model that is
        served is returned.

        Raises:
            LoadError: the original cannot be loaded.
        """
        with self._lock:
            if self._explaining is None:
                self._explaining = self._explained_by()
            return self._explaining

    def description(self) -> dict[str, Any]:
        """Return a description of the weights that are served, for users."""
        return {"file": self.file, "optimized": self.optimized, **({"reason": self.reason} if self.reason else {})}

    def _explained_by(self) -> Explaining:
        if self._load_original is not None and not weights.differentiable(self.model):
            logger.info("the original weights are loaded for explanations: %s has no gradients", self.file)
            with torch.inference_mode(False):
                original = self._load_original()
            if weights.differentiable(original):
                return Explaining(original, _half(original), "original")
        return Explaining(self.model, self.dtype)


@dataclass(frozen=True)
class Section:
    """The section ``optimized``.

    Attributes:
        weights: file in the archive; None: the original weights, with other options.
        needs: features that the machine must have, for `machine.missing`.
        options: options of the weights.
    """

    weights: str | None
    needs: tuple[str, ...]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, document: Any) -> Section:
        """Read the section.

        Raises:
            LoadError: the section is no mapping, has an unknown key or a value that cannot be used.
        """
        if not isinstance(document, Mapping):
            raise _invalid("", f"{document!r} is not a mapping such as {{weights: optimized/model.xml}}")
        for key in document:
            if key not in (*_OWN, *_OPTIONS):
                raise _invalid(f".{key}", f"no option is called so; there are {', '.join((*_OWN, *_OPTIONS))}")
        name, needs = document.get("weights"), document.get("needs") or []
        if name is not None and not (isinstance(name, str) and name):
            raise _invalid(".weights", f"{name!r} is not the path of a file in the archive")
        if not isinstance(needs, list | tuple) or not all(isinstance(need, str) for need in needs):
            raise _invalid(".needs", f"{needs!r} is not a list of flags such as [avx512_bf16]")
        options = {key: value for key, value in document.items() if key in _OPTIONS}
        try:
            Optimizations.of(options)
        except LoadError as error:
            raise LoadError(_in_section(str(error))) from None
        return cls(name, tuple(needs), options)


def load(
    folder: Path,
    serialized_file: str | None,
    model_file: str | None,
    device: torch.device,
    options: Mapping[str, Any],
    *,
    threads: int,
    pt2: Any = None,
    fault: str = "",
) -> ServedWeights:
    """Return the weights to serve.

    Args:
        folder: folder of the extracted archive; this and the next arguments are those of
            `torchmar_handlers.weights.load`.
        serialized_file: the original weights.
        model_file: the Python file with the class of the model.
        device: device of the worker.
        options: the ``handler`` section of the configuration.
        threads: threads of one operator.
        pt2: section ``pt2``, for the original weights.
        fault: the reason why the optimised weights must not be served; empty: they may be served.

    Raises:
        LoadError: the original weights cannot be loaded, or an option cannot be used.
        ImportError: and all other errors that the model file itself raises.
    """

    def original() -> nn.Module:
        return weights.load(folder, serialized_file, model_file, device, options, threads=threads, pt2=pt2)

    original_file = serialized_file or model_file
    if (document := options.get(SECTION)) is None:
        return ServedWeights(original(), original_file)
    section = Section.of(document)
    Optimizations.of(options, pt2)  # finds wrong options of the original even if it is not loaded
    file = section.weights or original_file
    try:
        fault = fault or machine.missing(section.needs, device)
        if not fault and section.weights:
            fault = _unfit(folder, section.weights)
        if not fault:
            model = _load(folder, section, serialized_file, model_file, device, options, threads, pt2)
            return ServedWeights(model, file, original)
    except Exception as error:
        logger.debug("the optimised weights cannot be loaded", exc_info=True)
        fault = _in_section(summary(error))
    title = section.weights or ", ".join(f"{key}: {value}" for key, value in section.options.items())
    logger.warning("the optimised weights (%s) are not served, but the original %s: %s", title, original_file, fault)
    return ServedWeights(original(), original_file, reason=fault)


def _load(
    folder: Path,
    section: Section,
    serialized_file: str | None,
    model_file: str | None,
    device: torch.device,
    options: Mapping[str, Any],
    threads: int,
    pt2: Any,
) -> nn.Module:
    if section.weights is None:
        merged = {**options, **section.options}
        return weights.load(folder, serialized_file, model_file, device, merged, threads=threads, pt2=pt2)
    needed_model_file = model_file if identify(folder / section.weights).needs_model_file else None
    return weights.load(folder, section.weights, needed_model_file, device, section.options, threads=threads)


def _unfit(folder: Path, file: str) -> str:
    """Return the reason why files of an archive must not be served as optimised weights; empty: they may be served.

    Damaged weights may load and give other answers, if only numbers have changed. So do weights that were
    made from another original.
    """
    sums = folder / _DIGESTS
    if not sums.is_file():
        return ""
    lines = sums.read_text(encoding="utf-8").splitlines()
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    path = PurePosixPath(file)
    for name, digest in digests.items():
        listed = PurePosixPath(name)
        # Weights at the top level of the archive have unrelated files beside them.
        is_related = path.parent.name or listed.stem == path.stem
        if listed.parent != path.parent or not is_related:
            continue
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != digest:
            return f"{name} is damaged: it has another digest than SHA256SUMS lists"
    for name, digest in _original(folder).items():
        if digests.get(name) != digest:
            return f"they were made of another {name} than that in the archive: run torchmar optimize again"
    return ""


def _original(folder: Path) -> Mapping[str, Any]:
    """Return the digests of the original weights from which the optimised ones were made, if they are known."""
    proof = folder / _PROOF
    document = json.loads(proof.read_bytes()) if proof.is_file() else {}
    original = document.get("original") if isinstance(document, Mapping) else None
    return original if isinstance(original, Mapping) else {}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _half(model: nn.Module) -> torch.dtype | None:
    dtype = weights.dtype(model)
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def _in_section(message: str) -> str:
    """Return a message about an option with the place of the option."""
    return message.replace("model-config.yaml: handler.", f"model-config.yaml: handler.{SECTION}.", 1)


def _invalid(place: str, problem: str) -> LoadError:
    return LoadError(f"model-config.yaml: handler.{SECTION}{place}: {problem}")
