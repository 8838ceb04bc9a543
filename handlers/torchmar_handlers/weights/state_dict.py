"""A class in a model file, with its weights: a state dict, safetensors, or none."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchmar_handlers.weights.load_error import LoadError, summary

logger = logging.getLogger(__name__)

_SHOWN = 5

State = dict[str, Any]


def instance(folder: Path, model_file: str) -> nn.Module:
    """Return an instance of the only class that a model file defines, created without arguments.

    Args:
        folder: folder of the extracted archive, the first entry of ``sys.path``.
        model_file: name of the model file in the folder.

    Raises:
        LoadError: there is no such file, or it does not define exactly one class of modules that needs no arguments.
        ImportError: and all other errors that the file itself raises.
    """
    path = folder / model_file
    if not path.is_file():
        raise LoadError(f"{model_file}: the archive has no such model file: build it again with the file in it")
    module = importlib.import_module(model_file.split(".")[0])
    origin = getattr(module, "__file__", None)
    if not origin or Path(origin).resolve() != path.resolve():
        raise LoadError(
            f"{model_file}: Python has another module of this name ({origin or 'built in'}): rename the model file"
        )
    classes = [
        value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    names = sorted({defined.__name__ for defined in classes})
    if len(names) != 1:
        count = f"{len(names)} classes ({', '.join(names)})" if names else "no class"
        raise LoadError(
            f"{model_file} defines {count}, and a model file defines exactly one, the model: "
            f"{'move the others to a file of their own and import them' if names else 'define it there'}"
        )
    try:
        inspect.signature(classes[0]).bind()
    except TypeError as error:
        raise LoadError(
            f"{model_file}: {names[0]} cannot be made without arguments ({error}): give each of them a default"
        ) from None
    model = classes[0]()
    if not isinstance(model, nn.Module):
        raise LoadError(f"{model_file}: {names[0]} is no torch.nn.Module")
    return model


def load_saved(path: Path, model: nn.Module, *, mapped: bool) -> nn.Module:
    """Load the state dict from a file of ``torch.save`` into ``model``; no code in the file is run.

    Args:
        path: the file.
        model: model that gets the tensors, on the CPU and in their stored types.
        mapped: whether to read tensors from the file when they are used, which the old format does not support.

    Raises:
        LoadError: the file contains more than tensors, is damaged, or has other tensors than the model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        match = re.search(r"Unsupported (?:global|class): ?GLOBAL ([\w.]+)", str(error))
        if match is None:
            raise _damaged(path, error) from error
        raise LoadError(
            f"{path.name} holds more than tensors ({match.group(1)}), a whole model perhaps, and loading that could "
            "run any code: save the weights alone, with torch.save(model.state_dict(), ...)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        raise _damaged(path, error) from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise LoadError(
            f"{path.name} holds a {type(state).__name__}, not a state dict: save torch.save(model.state_dict(), ...)"
        )
    return _assign(path, model, state)


def load_safetensors(path: Path, model: nn.Module) -> nn.Module:
    """Load the tensors of a safetensors file into ``model``, mapped. Raises LoadError as `load_saved` does."""
    return _assign(path, model, _read_safetensors(path))


def load_sharded(path: Path, model: nn.Module) -> nn.Module:
    """Load the tensors of the files in a safetensors index, which are beside it, into ``model``.

    Raises:
        LoadError: for the reasons of `load_saved`, or because one of the files is missing.
    """
    shards = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    missing = [name for name in shards if not (path.parent / name).is_file()]
    if missing:
        raise LoadError(f"{path.name} names files that the archive lacks: {_few(missing)}; add them to it")
    state: State = {}
    for name in shards:
        state |= _read_safetensors(path.parent / name)
    return _assign(path, model, state)


def _read_safetensors(path: Path) -> State:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise LoadError(
            f"{path.name} is a safetensors file, and safetensors is not installed: `pip install safetensors`, "
            "or name it in the archive's requirements"
        ) from error
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _assign(path: Path, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    """Make ``state`` the parameters and buffers of ``model`` without a copy, so that mapped tensors stay mapped."""
    tensors = model.state_dict(keep_vars=True)
    # If a model uses a tensor under two names, safetensors stores one of them.
    twins = {id(tensors[name]): state[name] for name in state if isinstance(tensors.get(name), torch.Tensor)}
    state = {**{name: twins[id(tensor)] for name, tensor in tensors.items() if id(tensor) in twins}, **state}
    converted = {
        (tensor.dtype, state[name].dtype)
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor) and isinstance(state.get(name), torch.Tensor)
    }
    for usual, stored in sorted((pair for pair in converted if pair[0] != pair[1]), key=str):
        logger.info(
            "%s: %s weights are stored as %s, and the model computes with them as they are; "
            "the option dtype: float32 converts them",
            path.name,
            usual,
            stored,
        )
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise _other_tensors(path, model, state, error) from error
    return model


def _other_tensors(path: Path, model: nn.Module, state: Mapping[str, Any], error: RuntimeError) -> LoadError:
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    shapes = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)}
    problems: list[str] = []
    if missing := [name for name in tensors if name not in state]:
        problems.append(f"missing {_few(missing)}")
    if unexpected := [name for name in state if name not in tensors]:
        problems.append(f"unexpected {_few(unexpected)}")
    if differing := [name for name in tensors if name in shapes and shapes[name] != tuple(tensors[name].shape)]:
        problems.append(
            "of another shape "
            + _few(
                differing,
                lambda name: f"{name} {shapes[name]} in the file and {tuple(tensors[name].shape)} in the model",
            )
        )
    nested = [name for name, value in state.items() if isinstance(value, Mapping)]
    if nested:
        hint = f"the file is a checkpoint: save its {nested[0]!r} alone"
    elif state and all(name.startswith("module.") for name in state):
        hint = "the names come from DataParallel: save model.module.state_dict()"
    else:
        hint = "the file and the class are not of the same model"
    return LoadError(
        f"{path.name} does not fit {type(model).__name__}: {'; '.join(problems) or summary(error)}; {hint}"
    )


def _damaged(path: Path, error: BaseException) -> LoadError:
    return LoadError(f"{path.name} is truncated or damaged: copy or download it again ({summary(error)})")


def _few(names: Iterable[str], show: Callable[[str], str] = str) -> str:
    all_names = list(names)
    rest = f" and {len(all_names) - _SHOWN} more" if len(all_names) > _SHOWN else ""
    return ", ".join(map(show, all_names[:_SHOWN])) + rest
