"""The options that make a loaded model faster or smaller; none is on by default."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchmar_handlers.weights import torchscript
from torchmar_handlers.weights.exported import Exported
from torchmar_handlers.weights.exported_model import ExportedModel
from torchmar_handlers.weights.load_error import LoadError, summary
from torchmar_handlers.weights.onnx_runtime import Onnx
from torchmar_handlers.weights.openvino_ir import OpenVino

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_COMPILE = {"backend": str, "mode": str, "dynamic": bool, "fullgraph": bool}


@dataclass(frozen=True, kw_only=True)
class Optimizations:
    """The changes to make to a model after it is loaded.

    Args:
        dtype: type of its weights, or of OpenVINO's computation; None: the stored type, or float32 for OpenVINO.
        channels_last: whether to lay out 4-D weights with the channels last.
        freeze: whether to call torch.jit.freeze.
        optimize_for_inference: whether to call torch.jit.optimize_for_inference.
        compilation: arguments of torch.compile; None: it is not compiled.
        required: whether a model that cannot be compiled is an error, which it is not in the ``pt2`` section.
        providers: ONNX Runtime's providers.
    """

    dtype: torch.dtype | None = None
    channels_last: bool = False
    freeze: bool = False
    optimize_for_inference: bool = False
    compilation: Mapping[str, Any] | None = None
    required: bool = True
    providers: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, Any], pt2: Any = None) -> Optimizations:
        """Read the ``handler`` section and TorchServe's ``pt2`` section; the former has precedence.

        Raises:
            LoadError: a value cannot be used.
        """
        dtype = options.get("dtype")
        if dtype is not None and not (isinstance(dtype, str) and dtype in _DTYPES):
            raise _invalid("dtype", dtype, ", ".join(_DTYPES))
        providers = options.get("providers")
        if providers is not None and not (
            isinstance(providers, list | tuple) and providers and all(isinstance(name, str) for name in providers)
        ):
            raise _invalid("providers", providers, "a list of ONNX Runtime's execution providers")
        compile_option = options.get("compile")
        return cls(
            dtype=None if dtype is None else _DTYPES[dtype],
            channels_last=_flag(options, "channels_last"),
            freeze=_flag(options, "freeze"),
            optimize_for_inference=_flag(options, "optimize_for_inference"),
            compilation=_of_section(pt2) if compile_option is None else _of_option(compile_option),
            required=compile_option is not None,
            providers=tuple(providers or ()),
        )

    def apply(self, model: nn.Module, path: Path | None, kind: str) -> nn.Module:
        """Return ``model`` with the changes of these options.

        Args:
            model: loaded model, in eval mode, without gradients of its weights.
            path: file of the model, for messages.
            kind: kind of the file, in words that follow "is".

        Raises:
            LoadError: this kind of model does not have an option.
        """
        name = path.name if path else type(model).__name__
        script = isinstance(model, torch.jit.ScriptModule)
        constant = isinstance(model, ExportedModel)
        if isinstance(model, torch.jit.ScriptModule) and torchscript.frozen(model):
            constant, kind = True, f"{kind} that is frozen"
        converts = not isinstance(model, OpenVino)  # OpenVINO computes with the type from the start
        if self.dtype is not None and constant and converts and dtype(model) != self.dtype:
            raise _not_for("dtype", name, kind, "convert the model before it is exported")
        if self.channels_last and constant:
            raise _not_for("channels_last", name, kind, "convert the model before it is exported")
        if self.providers and not isinstance(model, Onnx):
            raise _not_for("providers", name, kind, "it is for ONNX models only")
        for option in ("freeze", "optimize_for_inference"):
            if getattr(self, option) and not script:
                raise _not_for(option, name, kind, "it is for TorchScript only")
        if self.dtype is not None and not constant:
            model = model.to(self.dtype)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if isinstance(model, torch.jit.ScriptModule):
            model = self._optimize(model)
        return model if self.compilation is None else self._compile(model, name, kind)

    def _optimize(self, model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
        with torchscript.quietly():
            if self.freeze and not torchscript.frozen(model):
                model = torch.jit.freeze(model)
            return torch.jit.optimize_for_inference(model) if self.optimize_for_inference else model

    def _compile(self, model: nn.Module, name: str, kind: str) -> nn.Module:
        if isinstance(model, torch.jit.ScriptModule) or (
            isinstance(model, ExportedModel) and not isinstance(model, Exported)
        ):
            if self.required:
                raise _not_for("compile", name, kind, "it is for eager models and exported programs")
            logger.warning("%s is %s, which torch.compile does not take: the model runs as it is", name, kind)
            return model
        arguments = dict(self.compilation or {})
        try:
            if isinstance(model, Exported):
                model.replace(CompiledModule(model.module, name, arguments))
            else:
                model = CompiledModule(model, name, arguments)
        except Exception as error:
            logger.warning("%s could not be compiled and runs as it is: %s", name, summary(error))
        return model


class CompiledModule(nn.Module):
    """A module compiled with torch.compile; if compiling fails, in the first calls, the original module.

    All other attributes are those of the original module.
    """

    def __init__(self, module: nn.Module, name: str, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.training = False
        self._name = name
        # In a tuple, so that the same parameters are not listed twice.
        self._compiled: tuple[Any, ...] = (torch.compile(module, **arguments),)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def train(self, mode: bool = True) -> CompiledModule:
        """Change nothing: the module was compiled in eval mode."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        if not self._compiled:
            return self.module(*args, **kwargs)
        try:
            return self._compiled[0](*args, **kwargs)
        except Exception as error:
            if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            # Inputs that the module itself rejects raise an error here, which does not prevent compiling.
            answer = self.module(*args, **kwargs)
            logger.warning("%s could not be compiled and runs as it is from now on: %s", self._name, summary(error))
            self._compiled = ()
            return answer


def dtype(model: nn.Module) -> torch.dtype:
    """Return the type of floats that a model takes: that of its first weights of floats; float32: it has none."""
    if isinstance(model, ExportedModel):
        return model.dtype
    tensors: Iterable[torch.Tensor] = [*model.parameters(), *model.buffers()]
    stored_dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
    if stored_dtype is None and isinstance(model, torch.jit.ScriptModule):
        stored_dtype = torchscript.constant_dtype(model)
    return stored_dtype or torch.float32


def _of_option(option: Any) -> Mapping[str, Any] | None:
    """Read ``handler.compile``: true, false, or a mapping of torch.compile's arguments."""
    if isinstance(option, bool):
        return {} if option else None
    if not isinstance(option, Mapping):
        raise _invalid("compile", option, f"true, false or a mapping of {', '.join(_COMPILE)}")
    for name, value in option.items():
        if name not in _COMPILE:
            raise _invalid("compile", name, ", ".join(_COMPILE))
        if not isinstance(value, _COMPILE[name]):
            raise _invalid(f"compile.{name}", value, "a text" if _COMPILE[name] is str else "true or false")
    # These two import most of torch's compiler, as compiling itself does.
    if "backend" in option and option["backend"] not in torch._dynamo.list_backends(exclude_tags=()):
        raise _invalid("compile.backend", option["backend"], ", ".join(torch._dynamo.list_backends()))
    if "mode" in option and option["mode"] not in (modes := torch._inductor.list_mode_options()):
        raise _invalid("compile.mode", option["mode"], ", ".join(modes))
    return option


def _of_section(pt2: Any) -> Mapping[str, Any] | None:
    """Read the section ``pt2`` as TorchServe does: a backend, arguments, or ``compile`` and ``export``."""
    if pt2 is None:
        return None
    if isinstance(pt2, str):
        return {"backend": pt2}
    if not isinstance(pt2, Mapping):
        raise LoadError(f"model-config.yaml: pt2: {pt2!r} is neither the name of a backend nor a mapping")
    if "compile" in pt2:
        arguments = pt2["compile"]
        if not isinstance(arguments, Mapping):
            raise LoadError(f"model-config.yaml: pt2.compile: {arguments!r} is not a mapping such as {{enable: true}}")
        return {key: value for key, value in arguments.items() if key != "enable"} if arguments.get("enable") else None
    return None if "export" in pt2 else pt2


def _flag(options: Mapping[str, Any], name: str) -> bool:
    value = options.get(name)
    if value is not None and not isinstance(value, bool):
        raise _invalid(name, value, "true or false")
    return bool(value)


def _invalid(option: str, value: Any, allowed: str) -> LoadError:
    return LoadError(f"model-config.yaml: handler.{option}: {value!r} cannot be used; allowed: {allowed}")


def _not_for(option: str, name: str, kind: str, hint: str) -> LoadError:
    return LoadError(f"model-config.yaml: handler.{option}: {name} is {kind}, which does not have this option: {hint}")
