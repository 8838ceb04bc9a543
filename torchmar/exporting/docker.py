"""A Dockerfile for a server, and the .dockerignore that keeps secrets out of its build.

The reference: https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json

from torchmar.engines import EngineName
from torchmar.errors import TorchmarError
from torchmar.exporting.image import SOURCE, UID, Image, copy, copy_archives, stages
from torchmar.properties import Properties

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

{stages}{config}
{archives}
USER {uid}
EXPOSE {exposed}
# It reads the token from the run folder, and also fails if workers of a model die.
HEALTHCHECK --interval=30s --timeout=20s --start-period=300s --retries=3 CMD ["torchmar", "status"]
ENTRYPOINT {entrypoint}
"""
_FIXED_TOKEN = (
    "\n# A fixed token: export TORCHMAR_SERVER_INFERENCE_TOKEN, and docker run -e TORCHMAR_SERVER_INFERENCE_TOKEN ..."
)


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
    port_keys = {"REST": "inference_address", "gRPC": "grpc_inference_port", "metrics": "metrics_address"}
    if not config.serves_metrics:
        del port_keys["metrics"]
    published = {api: ports[key] for api, key in port_keys.items() if key in ports}
    numbers = list(dict.fromkeys(published.values()))
    return _DOCKERFILE.format(
        uid=UID,
        published=", ".join(f"{api} {port}" for api, port in published.items()),
        publish="".join(f"#     -p 127.0.0.1:{port}:{port} \\\n" for port in numbers),
        exposed=" ".join(map(str, numbers)),
        entrypoint=json.dumps(_entrypoint(image.engine, metrics="metrics" in published)),
        gpus=" --gpus all" if image.gpus else "",
        mount=' -v "$PWD/model_store:/srv/torchmar/model_store:ro"' if image.mount else "",
        # Both engines count GPUs with nvidia-smi, one of the driver's utilities.
        stages=stages(image, "NVIDIA_DRIVER_CAPABILITIES=compute,utility" if image.gpus else ""),
        # Packages in archives may contain libraries, which are loaded from the folder of extracted archives.
        exec="exec," if builtin else "",
        extracted="/run/torchmar" if builtin else "/tmp",
        fixed_token=_FIXED_TOKEN if builtin else "",
        config=copy(image.config, "./config.properties") if image.config else "# There is no config.properties.",
        archives=copy_archives(image),
    )


def _entrypoint(engine: EngineName, *, metrics: bool) -> list[str]:
    hosts = ["--host", "0.0.0.0", *(["--metrics-host", "0.0.0.0"] if metrics else [])]
    return ["torchmar", "serve", *hosts, "--model-store", "model_store", "--engine", engine]


def dockerignore(image: Image) -> str:
    """Return the text of a .dockerignore that excludes all files except those that the Dockerfile copies."""
    paths = [str(image.config)] if image.config else []
    paths += [image.package] if image.package else SOURCE
    paths += [] if image.mount else map(str, image.baked or [image.model_store])
    lines = [f"!{path}" for path in dict.fromkeys(paths)]
    return "\n".join(
        ["# Only the files that the Dockerfile copies: no tokens, no logs, no weights.", "*", *lines, *_NEVER, ""]
    )


_NEVER = ("**/__pycache__", "**/.*")
