"""The catalogue of variants: ways to make weights faster, and the packages and devices that they need."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torchmar.errors import TorchmarError

BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to make weights faster.

    Attributes:
        name: its identifier, such as ``openvino-int8``.
        title: its name for people.
        family: the module of `torchmar.optimizing.process` that makes it; empty for the baseline.
        arguments: arguments of the function of that module.
        packages: packages of Python to make or run it, by the names of their modules.
        device: its device; ``any``: the device of the original.
        calibrated: whether it is calibrated with inputs, which must not judge it then.
    """

    name: str
    title: str
    family: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    device: Literal["cpu", "cuda", "any"] = "cpu"
    calibrated: bool = False

    def unavailable(self, *, gpu: bool, calibration: int, missing: Collection[str] = (), own: bool = True) -> str:
        """Return the reason why the variant cannot be made here; empty: it can be tried.

        Args:
            gpu: whether the archive is served on a GPU of this machine.
            calibration: number of inputs for the calibration.
            missing: modules that are not installed.
            own: whether packages would be installed beside torchmar, not in an environment of the archive.
        """
        if self.device == "cuda" and not gpu:
            return "this machine has no GPU of NVIDIA, or the archive has deviceType: cpu"
        if self.device == "cpu" and gpu:
            return "it runs on the CPU, and the archive is served on the GPU; deviceType: cpu changes that"
        if lacking := [name for name in self.packages if name in missing]:
            names, verb = ", ".join(lacking), "is" if len(lacking) == 1 else "are"
            if own:
                return f"{names} {verb} not installed: pip install {' '.join(lacking)}"
            return (
                f"{names} {verb} not in the environment of the archive: add {'it' if verb == 'is' else 'them'} to the "
                "runtime's requires, and run torchmar lock"
            )
        if self.calibrated and not calibration:
            return "there are no inputs to calibrate it with: give --data FOLDER"
        return ""


#: In the order of the trials: first the variants that are made quickly, and are chosen most often.
CATALOGUE = (
    Variant(name=BASELINE, title="original", family="", device="any"),
    Variant(name="bfloat16", title="bfloat16", family="precision", arguments={"dtype": "bfloat16"}),
    Variant(name="float16", title="float16", family="precision", arguments={"dtype": "float16"}),
    Variant(name="torchscript-frozen", title="TorchScript, frozen", family="torchscript"),
    Variant(
        name="torchscript-bfloat16",
        title="TorchScript bfloat16",
        family="torchscript",
        arguments={"dtype": "bfloat16"},
    ),
    Variant(
        name="onnxruntime", title="ONNX Runtime", family="onnxruntime", packages=("onnx", "onnxscript", "onnxruntime")
    ),
    Variant(name="openvino", title="OpenVINO", family="openvino", packages=("openvino",)),
    Variant(
        name="openvino-bfloat16",
        title="OpenVINO bfloat16",
        family="openvino",
        arguments={"dtype": "bfloat16"},
        packages=("openvino",),
    ),
    Variant(
        name="onnxruntime-int8",
        title="ONNX Runtime int8",
        family="onnxruntime_int8",
        packages=("onnx", "onnxscript", "onnxruntime"),
        calibrated=True,
    ),
    Variant(
        name="openvino-int8",
        title="OpenVINO int8",
        family="openvino_int8",
        packages=("openvino", "nncf"),
        calibrated=True,
    ),
    Variant(name="export-aoti", title="AOTInductor", family="aoti", device="any"),
    Variant(name="export-aoti-bfloat16", title="AOTInductor bfloat16", family="aoti", arguments={"dtype": "bfloat16"}),
    Variant(name="compile", title="torch.compile", family="compiled", device="any"),
    Variant(
        name="cuda-float16",
        title="float16 on the GPU",
        family="precision",
        arguments={"dtype": "float16"},
        device="cuda",
    ),
    Variant(
        name="cuda-bfloat16",
        title="bfloat16 on the GPU",
        family="precision",
        arguments={"dtype": "bfloat16"},
        device="cuda",
    ),
    Variant(
        name="cuda-graphs",
        title="CUDA graphs",
        family="compiled",
        arguments={"mode": "reduce-overhead"},
        device="cuda",
    ),
    Variant(
        name="tensorrt",
        title="TensorRT",
        family="onnxruntime",
        arguments={"tensorrt": True},
        packages=("onnx", "onnxscript", "onnxruntime"),
        device="cuda",
    ),
)


#: The modules that variants need, without repetition.
PACKAGES = tuple(dict.fromkeys(name for variant in CATALOGUE for name in variant.packages))


def select(names: Sequence[str]) -> tuple[Variant, ...]:
    """Return the variants of these names and the baseline, in the order of the catalogue; without names, all variants.

    Raises:
        TorchmarError: there is no variant of a name.
    """
    variant_names = [variant.name for variant in CATALOGUE]
    if unknown := [name for name in names if name not in variant_names]:
        raise TorchmarError(f"no variant is called {unknown[0]!r}", hint=f"there are {', '.join(variant_names[1:])}")
    return tuple(variant for variant in CATALOGUE if not names or variant.name in (BASELINE, *names))
