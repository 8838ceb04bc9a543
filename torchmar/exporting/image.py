"""The content of an image with torchmar, and the instructions of Dockerfiles that put it there.

The reference: https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from packaging.requirements import InvalidRequirement, Requirement

from torchmar.engines import DEFAULT, EngineName
from torchmar.errors import TorchmarError
from torchmar.worker.venvs.folder import VARIABLE

#: User id of the server.
UID = 10001
#: Files from which torchmar is installed, if the folder is its source.
SOURCE = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "torchmar", "handlers")
_BUILD = """\
FROM python:{python}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
{torch}{copy_package}
RUN pip install {package}
"""
_SERVER = """\
FROM python:{python}-slim
{user}COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \\
    PYTHONUNBUFFERED=1 \\
    PYTHONDONTWRITEBYTECODE=1 \\
    TORCHMAR_RUN_FOLDER=/run/torchmar{variables}
WORKDIR /srv/torchmar
"""
_USER = """\
RUN useradd --system --uid {uid} --no-create-home --home-dir /tmp --shell /usr/sbin/nologin torchmar \\
    && install --directory --owner={uid} --mode=700 /run/torchmar
"""
_CPU_ONLY = "RUN pip install {torch} --index-url https://download.pytorch.org/whl/cpu\n"
_MEANS_MORE = re.compile(r"[*?\[\]$\\\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Image:
    """The content of an image; paths are relative to the folder of the build.

    Attributes:
        config: the server's configuration; None: TorchServe's defaults.
        model_store: the folder with the archives.
        mount: whether the archives are mounted when a container starts, and not in the image.
        baked: archives in the image, each in its own layer; empty: all archives of the model store.
        with_runtime: archives of ``baked`` that require an environment of their own, which is built in the image.
        package: a wheel of torchmar; empty if the folder is the source of torchmar.
        extras: extras of torchmar in addition to those that the engine needs.
        packages: further requirements, for imports of handlers.
        python: version of Python.
        torch: version of torch; empty: the newest.
        gpus: whether to install torch with CUDA, which is 5 GB larger.
        engine: kind of server; only TorchServe needs Java.
    """

    config: PurePosixPath | None
    model_store: PurePosixPath
    mount: bool = False
    baked: Sequence[PurePosixPath] = ()
    with_runtime: Sequence[PurePosixPath] = ()
    package: str = ""
    extras: Sequence[str] = ()
    packages: Sequence[str] = ()
    python: str = "3.11"
    torch: str = ""
    gpus: bool = False
    engine: EngineName = DEFAULT


def stages(image: Image, *variables: str, user: bool = True) -> str:
    """Return the two stages of a Dockerfile up to the working directory: torchmar is installed, then copied.

    Args:
        image: the content.
        variables: environment variables of the server, as ``NAME=value``; empty texts are ignored.
        user: whether to make the user `UID`, who owns the run folder.

    Raises:
        TorchmarError: an extra has a wrong name, a further package is no requirement, or the package is outside the
            folder.
    """
    server = _SERVER.format(
        python=image.python,
        user=_USER.format(uid=UID) if user else "",
        variables="".join(f" \\\n    {variable}" for variable in variables if variable),
    )
    return f"{_build_stage(image)}\n{server}"


def _build_stage(image: Image) -> str:
    """Return the first stage of a Dockerfile, ``build``, which installs torchmar to ``/opt/venv``."""
    requirements = [_requirement(text) for text in image.packages]
    # Each version of these packages fits one version of torch, so that pip has to choose both together.
    built_with_torch = [
        str(requirement) for requirement in requirements if requirement.name in ("torchaudio", "torchvision")
    ]
    others = [str(requirement) for requirement in requirements if str(requirement) not in built_with_torch]
    torch = shlex.join([f"torch=={image.torch}" if image.torch else "torch", *built_with_torch])
    target = f"/src/{PurePosixPath(image.package).name}" if image.package else "/src"
    extras = ",".join(dict.fromkeys(("server" if image.engine == "builtin" else image.engine, *image.extras)))
    if wrong := [extra for extra in image.extras if not re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", extra)]:
        raise TorchmarError(f"{wrong[0]!r} is no extra of a package", hint="write them like onnx,text")
    return _BUILD.format(
        python=image.python,
        torch=f"RUN pip install {torch}\n" if image.gpus else _CPU_ONLY.format(torch=torch),
        copy_package=copy(image.package, target) if image.package else _copy_source(),
        package=shlex.join([f"{target}[{extras}]", *others]),
    )


def _requirement(text: str) -> Requirement:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise TorchmarError(
            f"{text!r} is no package", hint="write it like transformers or transformers==4.50"
        ) from None
    if requirement.url:
        raise TorchmarError(f"{text!r} names a URL, which the image does not have", hint="write name and version")
    return requirement


def _copy_source() -> str:
    files = " ".join(name for name in SOURCE if "." in name or name == "LICENSE")
    folders = [f"COPY {name} /src/{name}" for name in SOURCE if name in ("torchmar", "handlers")]
    return "\n".join([f"COPY {files} /src/", *folders])


def copy_archives(image: Image) -> str:
    """Return the instructions that put the archives into the model store, and build their environments."""
    if image.mount:
        return "# The archives are mounted."
    if image.baked:
        copies = [copy(path, f"./model_store/{path.name}") for path in image.baked]
        builds = [
            # Compiled, because the file system is read-only later; without a cache, which would stay in the layer.
            f"RUN UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 torchmar venv build {shlex.quote(path)}"
            for path in (f"./model_store/{archive.name}" for archive in image.with_runtime)
        ]
        return "\n".join([*copies, *([f"ENV {VARIABLE}=/opt/venvs"] if builds else []), *builds])
    return copy(image.model_store, "./model_store/")


def copy(path: str | PurePosixPath, target: str) -> str:
    """Return an instruction that copies a path of the build's folder.

    Raises:
        TorchmarError: the path is outside the folder, or has characters that Docker interprets.
    """
    return f"COPY {json.dumps([_checked(path), target])}"


def _checked(path: str | PurePosixPath) -> str:
    text = str(path)
    if "\n" in text or "\r" in text:
        raise TorchmarError(f"{text!r} has a line break, which a Dockerfile cannot have")
    if text != text.strip() or _MEANS_MORE.search(text):
        raise TorchmarError(
            f"{text!r} has a space at an end, or one of * ? [ ] $ \\, which Docker reads as a pattern or a variable",
            hint="rename it",
        )
    if PurePosixPath(text).is_absolute() or ".." in PurePosixPath(text).parts:
        raise TorchmarError(f"{text} is not in the folder that the image is built in", hint="copy it to that folder")
    return text
