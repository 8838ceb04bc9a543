"""A Dockerfile for a server, and the .dockerignore that keeps secrets out of its build.

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
from torchmar.properties import Properties
from torchmar.worker.venvs.folder import VARIABLE

UID = 10001
_DOCKERFILE = """\
# syntax=docker/dockerfile:1
# Runs a server on ports of this machine ({published}), with a
# read-only file system and without capabilities:
#   docker build -t torchmar .
#   docker run --rm --name torchmar{gpus}{mount} \\
{publish}#     --read-only --tmpfs /tmp:exec --tmpfs /run/torchmar:{exec}uid={uid},mode=700 \\
#     --cap-drop ALL --security-opt no-new-privileges torchmar
# Archives are extracted to {extracted}: for large ones, mount a volume there, not a tmpfs.
# Tokens: docker exec torchmar cat /run/torchmar/key_file.json{fixed_token}
# Management stays inside: docker exec torchmar torchmar models

{build}
FROM python:{python}-slim
RUN useradd --system --uid {uid} --no-create-home --home-dir /tmp --shell /usr/sbin/nologin torchmar \\
    && install --directory --owner={uid} --mode=700 /run/torchmar
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \\
    PYTHONUNBUFFERED=1 \\
    PYTHONDONTWRITEBYTECODE=1 \\
    TORCHMAR_RUN_FOLDER=/run/torchmar{environment}
WORKDIR /srv/torchmar
{config}
{archives}
USER {uid}
EXPOSE {exposed}
# It reads the token from the run folder, and also fails if workers of a model die.
HEALTHCHECK --interval=30s --timeout=20s --start-period=300s --retries=3 CMD ["torchmar", "status"]
ENTRYPOINT {entrypoint}
"""
_BUILD = """\
FROM python:{python}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
{torch}{copy_package}
RUN pip install {package}
"""
_FIXED_TOKEN = (
    "\n# A fixed token: export TORCHMAR_SERVER_INFERENCE_TOKEN, and docker run -e TORCHMAR_SERVER_INFERENCE_TOKEN ..."
)
_CPU_ONLY = "RUN pip install {torch} --index-url https://download.pytorch.org/whl/cpu\n"
_MEANS_MORE = re.compile(r"[*?\[\]$\\\x00-\x1f\x7f]")
_SOURCE = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "torchmar", "handlers")


@dataclass(frozen=True)
class Image:
    """The content of an image; paths are relative to the folder of the build.

    Attributes:
        config: the server's configuration; None: TorchServe's defaults.
        model_store: the folder with the archives.
        mount: leave the archives out; they are mounted when a container starts.
        baked: the archives to put in, each in a layer of its own; empty: all of the model store.
        with_runtime: those of ``baked`` that ask for an environment of their own, which is built in the image.
        package: a wheel of torchmar; empty if the folder is the source of torchmar.
        extras: extras of torchmar besides those that the engine needs.
        packages: further requirements, for what handlers import.
        python: the version of Python.
        torch: the version of torch; empty: the newest.
        gpus: install torch with CUDA, which is 5 GB larger.
        engine: the server; only TorchServe needs Java.
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


def dockerfile(image: Image, config: Properties) -> str:
    """Return the text of a Dockerfile.

    Raises:
        TorchmarError: a path has a line break, or is outside the folder; an extra has a wrong name; or the server
            listens at a Unix socket.
        PropertiesError: an address is invalid.
    """
    if config.addresses()[0].unix:
        raise TorchmarError(
            "inference_address is a Unix socket, which cannot be reached from outside the container",
            hint="write it like inference_address=http://127.0.0.1:8080",
        )
    builtin = image.engine != "torchserve"
    ports = {address.key: address.port for address in config.addresses() if not address.unix}
    wanted = {"REST": "inference_address", "gRPC": "grpc_inference_port", "metrics": "metrics_address"}
    if config.get("enable_metrics_api").strip().lower() == "false":
        del wanted["metrics"]
    published = {what: ports[key] for what, key in wanted.items() if key in ports}
    numbers = list(dict.fromkeys(published.values()))
    return _DOCKERFILE.format(
        uid=UID,
        python=image.python,
        published=", ".join(f"{what} {port}" for what, port in published.items()),
        publish="".join(f"#     -p 127.0.0.1:{port}:{port} \\\n" for port in numbers),
        exposed=" ".join(map(str, numbers)),
        entrypoint=json.dumps(_entrypoint(image.engine, metrics="metrics" in published)),
        gpus=" --gpus all" if image.gpus else "",
        mount=' -v "$PWD/model_store:/srv/torchmar/model_store:ro"' if image.mount else "",
        build=build_stage(image),
        # Packages in archives may have libraries, which are loaded from the folder of extracted archives.
        exec="exec," if builtin else "",
        extracted="/run/torchmar" if builtin else "/tmp",
        fixed_token=_FIXED_TOKEN if builtin else "",
        # Both engines count GPUs with nvidia-smi, one of the driver's utilities.
        environment=" \\\n    NVIDIA_DRIVER_CAPABILITIES=compute,utility" if image.gpus else "",
        config=copy(image.config, "./config.properties") if image.config else "# There is no config.properties.",
        archives=copy_archives(image),
    )


def build_stage(image: Image) -> str:
    """Return the first stage of a Dockerfile, called ``build``, which installs torchmar to ``/opt/venv``.

    Raises:
        TorchmarError: an extra has a wrong name, a further package is no requirement, or the package is outside the
            folder.
    """
    requirements = [_requirement(text) for text in image.packages]
    # Each version of these fits one version of torch, so that pip has to choose both.
    built_with_torch = [str(each) for each in requirements if each.name in ("torchaudio", "torchvision")]
    others = [str(each) for each in requirements if str(each) not in built_with_torch]
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


def _entrypoint(engine: EngineName, *, metrics: bool) -> list[str]:
    hosts = ["--host", "0.0.0.0", *(["--metrics-host", "0.0.0.0"] if metrics else [])]
    return ["torchmar", "serve", *hosts, "--model-store", "model_store", "--engine", engine]


def dockerignore(image: Image) -> str:
    """Return the text of a .dockerignore that excludes all files except those that the Dockerfile copies."""
    wanted = [str(image.config)] if image.config else []
    wanted += [image.package] if image.package else _SOURCE
    wanted += [] if image.mount else map(str, image.baked or [image.model_store])
    lines = [f"!{path}" for path in dict.fromkeys(wanted)]
    return "\n".join(
        ["# Only the files that the Dockerfile copies: no tokens, no logs, no weights.", "*", *lines, *_NEVER, ""]
    )


_NEVER = ("**/__pycache__", "**/.*")


def _copy_source() -> str:
    files = " ".join(name for name in _SOURCE if "." in name or name == "LICENSE")
    folders = [f"COPY {name} /src/{name}" for name in _SOURCE if name in ("torchmar", "handlers")]
    return "\n".join([f"COPY {files} /src/", *folders])


def copy_archives(image: Image) -> str:
    """Return the instructions that put the archives into the model store, and build their environments."""
    if image.mount:
        return "# The archives are mounted."
    if image.baked:
        copies = [copy(path, f"./model_store/{path.name}") for path in image.baked]
        builds = [
            # Compiled, because nothing can be written later; without a cache, which would stay in the layer.
            f"RUN UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 torchmar venv build {shlex.quote(path)}"
            for path in (f"./model_store/{each.name}" for each in image.with_runtime)
        ]
        return "\n".join([*copies, *([f"ENV {VARIABLE}=/opt/venvs"] if builds else []), *builds])
    return copy(image.model_store, "./model_store/")


def copy(path: str | PurePosixPath, target: str) -> str:
    """Return an instruction that copies a path of the build's folder.

    Raises:
        TorchmarError: the path is outside the folder, or has characters that Docker reads as something else.
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
