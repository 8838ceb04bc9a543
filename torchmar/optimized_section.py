"""The section ``optimized`` in the options of a handler: weights that are faster on some machines, read strictly."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from torchmar.strict_yaml import StrictModel, meant

KEY = "optimized"
"""The name of the section."""

FOLDER = "optimized"
"""The folder of the chosen variant's files, beside the recipe and in the archive."""

PROOF = f"{FOLDER}/proof.json"
"""The report of the optimisation, in the archive."""

# Names from /proc/cpuinfo of Linux: the flags that affect the speed or the types of a model's operators.
_OF_X86 = (
    *("sse4_1", "sse4_2", "ssse3", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512cd", "avx512dq"),
    *("avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx512_vbmi2", "avx_vnni", "avx_vnni_int8"),
    *("avx_vnni_int16", "avx_ne_convert", "avx_ifma", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "avx10"),
)
_OF_ARM = (
    *("asimd", "asimdhp", "asimddp", "asimdfhm", "fphp", "bf16", "i8mm", "sve", "sve2", "svebf16", "svei8mm"),
    *("sme", "sme2"),
)
CPU_FLAGS = (*_OF_X86, *_OF_ARM)
"""Flags of processors that weights may need."""

_CUDA = re.compile(r"cuda(>=\d+\.\d+)?")


def _need(value: str) -> str:
    for name in (part.strip() for part in value.split("|")):
        if name not in CPU_FLAGS and not _CUDA.fullmatch(name):
            close = difflib.get_close_matches(name, CPU_FLAGS, 1)
            hint = f"; did you mean {close[0]}?" if close else ", such as avx512_bf16, nor cuda>=8.0"
            raise ValueError(f"{name!r} is no flag of a processor that torchmar knows{hint}")
    return value


class Compile(StrictModel):
    """Arguments of ``torch.compile``."""

    backend: str | None = None
    mode: str | None = None
    dynamic: bool | None = None
    fullgraph: bool | None = None


class OptimizedSection(StrictModel):
    """Weights that are faster on some machines; other machines serve the original weights."""

    weights: str | None = Field(
        None, description="Their file in the archive. Without it, they are the original weights with the options below."
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="Convert the weights; of OpenVINO: compute with it."
    )
    channels_last: bool | None = Field(None, description="Lay out the weights of convolutions so.")
    freeze: bool | None = Field(None, description="torch.jit.freeze, of TorchScript.")
    optimize_for_inference: bool | None = Field(None, description="torch.jit.optimize_for_inference, of TorchScript.")
    compile: bool | Compile | None = Field(None, description="torch.compile: true, or its arguments.")
    providers: list[str] | None = Field(None, description="Execution providers of ONNX Runtime.")
    needs: list[Annotated[str, AfterValidator(_need)]] | None = Field(
        None,
        description="Flags that the processor must have, as /proc/cpuinfo has them; alternatives are separated by |. "
        "cuda>=8.0 is a GPU of at least this compute capability.",
    )


def problems(value: Any) -> list[str]:
    """Return the problems of a section, one line each; an empty list: it is valid."""
    if not isinstance(value, dict):
        return [f"{value!r} is not a mapping such as {{weights: {FOLDER}/model.xml}}"]
    try:
        OptimizedSection.model_validate(value)
    except ValidationError as error:
        return list(dict.fromkeys(_problem(dict(detail), value) for detail in error.errors()))
    return []


def without(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that serves the original weights: without the sections of the handler and its stages."""
    options = config.get("handler")
    if not isinstance(options, Mapping):
        return dict(config)
    rest = {key: value for key, value in options.items() if key != KEY}
    if isinstance(stages := rest.get("stages"), list):
        rest["stages"] = [_stage_without(stage) if isinstance(stage, Mapping) else stage for stage in stages]
    return {**config, "handler": rest}


def _stage_without(stage: Mapping[str, Any]) -> dict[str, Any]:
    options = stage.get("options")
    rest = {key: value for key, value in options.items() if key != KEY} if isinstance(options, Mapping) else options
    return {**stage, **({"options": rest} if "options" in stage else {})}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the section, complete in itself."""
    document = OptimizedSection.model_json_schema(ref_template="{model}")
    definitions = document.pop("$defs")

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return (
                resolved(definitions[value["$ref"]]) if "$ref" in value else {k: resolved(v) for k, v in value.items()}
            )
        return [resolved(item) for item in value] if isinstance(value, list) else value

    return dict(resolved(document))


def _problem(detail: dict[str, Any], value: dict[str, Any]) -> str:
    location = list(detail["loc"])
    key = str(location[0])
    if detail["type"] == "extra_forbidden" and len(location) == 1:
        close = meant(key, OptimizedSection)
        return f"there is no option {key!r}; " + (
            f"did you mean {close}?" if close else f"there are {', '.join(OptimizedSection.model_fields)}"
        )
    if key == "compile":
        arguments = ", ".join(Compile.model_fields)
        return f"compile: {value['compile']!r} is neither true nor false nor a mapping of {arguments}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" if detail["type"] == "value_error" else f"{key}: {value[key]!r}: {message}"
