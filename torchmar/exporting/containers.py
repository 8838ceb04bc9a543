"""Dockerfiles of servers on platforms for containers, which set the address and provide the models or their storage."""

from __future__ import annotations

import json
from collections.abc import Sequence

from torchmar.exporting.image import UID, Image, copy_archives, stages
from torchmar.platforms import VARIABLE, PlatformName

_HEAD = """\
# syntax=docker/dockerfile:1
# {title}
#   docker build -t {name} .
#   docker run --rm -p 127.0.0.1:8080:8080 {mount}{name}{argument}
# Requests need no token, since the platform sends none: publish the port only for those who may use the model.

{stages}"""
_VERTEX = """\
{archives}
USER {uid}
EXPOSE 8080
ENTRYPOINT {entrypoint}
"""
_SAGEMAKER = """\
# It can serve several models, and listen at another port, as SageMaker has it.
LABEL com.amazonaws.sagemaker.capabilities.multi-models=true \\
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
# SageMaker runs containers as root: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
EXPOSE 8080
# SageMaker starts the container with the argument serve.
ENTRYPOINT {entrypoint}
CMD {command}
"""


def vertex_dockerfile(image: Image, name: str) -> str:
    """Return the text of a Dockerfile for Vertex AI; the image has the archives that ``image`` names.

    Args:
        image: packages and archives; its configuration and model store are not used.
        name: name of the image, for the commands in the file's first lines.

    Raises:
        TorchmarError: for the conditions of `torchmar.exporting.docker.dockerfile`.
    """
    end = _VERTEX.format(archives=copy_archives(image), uid=UID, entrypoint=_list("torchmar", "serve"))
    return _head(image, "vertex", name, user=True) + end


def sagemaker_dockerfile(image: Image, name: str) -> str:
    """Return the text of a Dockerfile for SageMaker, which provides the models; arguments as `vertex_dockerfile`."""
    end = _SAGEMAKER.format(entrypoint=_list("torchmar"), command=_list("serve"))
    return _head(image, "sagemaker", name, user=False) + end


def dockerignore(files: Sequence[str]) -> str:
    """Return the text of a .dockerignore that excludes all files of a folder except ``files``."""
    return "\n".join(["# Only the files that the Dockerfile copies.", "*", *(f"!{file}" for file in files), ""])


def _head(image: Image, platform: PlatformName, name: str, *, user: bool) -> str:
    on_sagemaker = platform == "sagemaker"
    return _HEAD.format(
        title="Serves the models of SageMaker:" if on_sagemaker else "Serves a model on Vertex AI:",
        name=name,
        mount='-v "$PWD/model:/opt/ml/model:ro" ' if on_sagemaker else "",
        argument=" serve   # after: mkdir model && tar xf model.tar.gz -C model" if on_sagemaker else "",
        stages=stages(image, f"{VARIABLE}={platform}", user=user),
    )


def _list(*words: str) -> str:
    return json.dumps(words)
