"""torchmar.gpus runs nvidia-smi and reads its output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchmar import gpus

Install = Callable[..., dict[str, str]]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Return a function that installs an nvidia-smi with an output, and returns the environment to find it."""

    def write(output: str, code: int = 0) -> dict[str, str]:
        command = tmp_path / "nvidia-smi"
        command.write_text(
            f"#!/bin/sh\nwhile read -r line; do echo \"$line\"; done <<'END'\n{output}END\nexit {code}\n"
        )
        command.chmod(0o755)
        return {"PATH": str(tmp_path)}

    return write


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 3), ("", 0), ("-1", 0), ("1", 1), ("0,1,-1,2", 2), ("GPU-x,GPU-y", 2), ("0,1,2,3", 3)]
)
def test_gpus_are_those_of_nvidia_smi_that_are_visible(install: Install, visible: str | None, count: int) -> None:
    environment = install("0\n1\n2\n") | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert gpus.count(environment) == count


def test_the_fields_of_a_gpu_are_by_its_index(install: Install) -> None:
    environment = install("0, NVIDIA H200, 143771\n2, NVIDIA GB10, [N/A]\n")
    assert gpus.query("name", "memory.total", environment=environment) == {
        0: ["NVIDIA H200", "143771"],
        2: ["NVIDIA GB10", "[N/A]"],
    }


@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        ("No devices were found\n", 0, "reports no GPU, but: No devices were found"),
        ("NVIDIA-SMI has failed\n", 9, "reports no GPU, but: NVIDIA-SMI has failed"),
        ("", 1, "reports no GPU, but: nothing"),
    ],
)
def test_an_nvidia_smi_without_gpus_is_an_error(install: Install, output: str, code: int, message: str) -> None:
    environment = install(output, code)
    with pytest.raises(gpus.NvidiaSmiError, match=message):
        gpus.query(environment=environment)
    assert gpus.count(environment) == 0


def test_a_machine_without_nvidia_smi_has_no_gpus(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path)}
    assert not gpus.has_nvidia_smi(environment)
    assert gpus.count(environment) == 0
    with pytest.raises(gpus.NvidiaSmiError, match="is not installed"):
        gpus.query(environment=environment)
