"""SageMaker: the conversion of variables ``SAGEMAKER_...`` and the folder ``/opt/ml`` to the server's configuration.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html: ``docker run IMAGE serve`` listens
on all interfaces at port 8080 (or ``SAGEMAKER_BIND_TO_PORT``), responds to ``/ping`` and ``/invocations``, and finds
the content of ``model.tar.gz`` in ``/opt/ml/model``. With ``SAGEMAKER_MULTI_MODEL=true`` SageMaker loads and unloads
models itself, which it extracts below ``/opt/ml/models``; see `torchmar.server.api.sagemaker`.

The variables of SageMaker's PyTorch toolkit (``SAGEMAKER_MODEL_SERVER_WORKERS``, ``SAGEMAKER_TS_BATCH_SIZE``...) keep
their meanings: https://github.com/aws/sagemaker-pytorch-inference-toolkit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torchmar import platforms
from torchmar.archive import Archive
from torchmar.archive.folder_form import archive_folder
from torchmar.errors import TorchmarError
from torchmar.platforms import Demands
from torchmar.properties import Properties

PORT = 8080
#: Handler for packages of the toolkit, which have functions in ``code/inference.py`` and no manifest.
TOOLKIT_HANDLER = "torchmar_handlers.sagemaker"
#: Seconds for an answer, after which SageMaker gives up the request.
RESPONSE_TIMEOUT = 60

_MAX_PAYLOAD_MIB = 25  # limit for a request to an endpoint
_LARGEST_PAYLOAD_MIB = 1024  # limit for an asynchronous request, or for a batch transform job without its own
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
# The toolkit's variables, with TorchServe's options of a version.
_OPTIONS = {
    "SAGEMAKER_TS_BATCH_SIZE": "batchSize",
    "SAGEMAKER_TS_MAX_BATCH_DELAY": "maxBatchDelay",
    "SAGEMAKER_TS_MIN_WORKERS": "minWorkers",
    "SAGEMAKER_TS_MAX_WORKERS": "maxWorkers",
    "SAGEMAKER_TS_RESPONSE_TIMEOUT": "responseTimeout",
}


def demands(environment: Mapping[str, str], config: Properties) -> Demands:
    """Return the demands of SageMaker.

    Args:
        environment: variables ``SAGEMAKER_...``.
        config: configuration of the user. Its ``default_response_timeout``, ``default_workers_per_model`` and sizes are
            kept unless a variable sets them.

    Raises:
        TorchmarError: a variable has an invalid value, or there is no model.
    """
    port = platforms.port(environment, "SAGEMAKER_BIND_TO_PORT", PORT)
    base = Path(environment.get("SAGEMAKER_BASE_DIR") or "/opt/ml").resolve()
    multi_model = platforms.flag(environment, "SAGEMAKER_MULTI_MODEL")
    payload = _max_payload(environment) << 20
    timeout = _number(environment, "SAGEMAKER_MODEL_SERVER_TIMEOUT", least=1)
    workers = _number(environment, "SAGEMAKER_MODEL_SERVER_WORKERS", least=1)
    handler = config.get("default_service_handler") or TOOLKIT_HANDLER
    values = {
        **platforms.without_tokens(),
        **platforms.loopback_addresses(_other_ports(environment, port)),
        "inference_address": f"http://0.0.0.0:{port}",
        "model_snapshot": "",
        "default_service_handler": handler,
        # As in AWS's containers: handlers get the unparsed body of a request.
        "decode_input_request": config.values.get("decode_input_request") or "false",
        "default_response_timeout": timeout or config.values.get("default_response_timeout") or str(RESPONSE_TIMEOUT),
        "default_workers_per_model": workers
        or config.values.get("default_workers_per_model")
        or ("1" if multi_model else "0"),
        "max_request_size": config.values.get("max_request_size") or str(payload),
        "max_response_size": config.values.get("max_response_size") or str(payload),
    }
    reached = f"every client that reaches port {port} can use the model{'s' if multi_model else ''}"
    notes = [f"SageMaker's requests have no tokens: {reached}"]
    if multi_model:
        folder = base / "models"
        values |= {"torchmar_platform": "sagemaker-multi-model", "load_models": "none"}
        notes = [f"SageMaker: models below {folder} are loaded and unloaded by its requests", *notes]
        return Demands(values=values, model_store=_made(folder), notes=tuple(notes))
    archive, store = _archive(base / "model", config)
    values |= {
        "torchmar_platform": "sagemaker",
        "load_models": platforms.in_list(str(archive)),
        **_options(environment, archive),
    }
    notes = [f"SageMaker: the model is {archive}", *notes]
    if not _is_archive(archive):
        notes.append(f"it has no manifest: {handler} runs its functions")
        if (archive / "code" / "requirements.txt").is_file():
            notes.append(
                "its code/requirements.txt is not installed: put the packages into the image, or use torchmar import"
            )
    return Demands(values=values, model_store=store, notes=tuple(notes))


def _archive(folder: Path, config: Properties) -> tuple[Path, Path | None]:
    """Return the archive to serve, and its model store; None: that of the configuration."""
    content = sorted(folder.iterdir()) if folder.is_dir() else []
    if not content:  # the model is in the image
        return platforms.only_archive(Path(config.get("model_store") or "model_store").resolve(), "SageMaker"), None
    if archives := [path for path in content if path.suffix == ".mar"]:
        return platforms.only_archive(folder, "SageMaker"), archives[0].parent
    is_package = any(path.name == "code" or path.suffix in (".pt", ".pth") for path in content)
    if _is_archive(folder) or is_package or config.get("default_service_handler"):
        return folder, folder
    names = ", ".join(path.name for path in content[:5])
    raise TorchmarError(
        f"{folder} has no archive, no code/ and no weights, but {names}",
        hint="torchmar export sagemaker ARCHIVE writes a model.tar.gz with an archive",
    )


def _is_archive(path: Path) -> bool:
    return path.is_file() or (archive_folder(path) / "MAR-INF").is_dir()


def _options(environment: Mapping[str, str], archive: Path) -> dict[str, str]:
    """Return the toolkit's options of the version as the key ``models``; empty if no variable sets one."""
    options = {
        option: int(number)
        for variable, option in _OPTIONS.items()
        if (number := _number(environment, variable, least=0))
    }
    if not options:
        return {}
    name, version = "model", "1.0"
    if _is_archive(archive):
        with Archive(archive) as opened:
            name, version = opened.manifest.name, opened.manifest.version
    return {"models": json.dumps({name: {version: options}})}


def _max_payload(environment: Mapping[str, str]) -> int:
    """Return the largest size of a request in MiB; batch transform jobs set their own, where 0 means no limit."""
    limit = _number(environment, "SAGEMAKER_MAX_PAYLOAD_IN_MB", least=0)
    if limit is None:
        return _LARGEST_PAYLOAD_MIB if platforms.flag(environment, "SAGEMAKER_BATCH") else _MAX_PAYLOAD_MIB
    return int(limit) or _LARGEST_PAYLOAD_MIB


def _other_ports(environment: Mapping[str, str], port: int) -> list[int]:
    """Return the ports of the other APIs, from ``SAGEMAKER_SAFE_PORT_RANGE``.

    Several containers on one machine, as in a pipeline, each have their own range.
    """
    text = environment.get("SAGEMAKER_SAFE_PORT_RANGE", "").strip()
    if not text:
        return platforms.ports_beside(port)
    match = _RANGE.fullmatch(text)
    free = [number for number in range(int(match[1]), int(match[2]) + 1) if number != port] if match else []
    if len(free) < 4 or not 0 < free[0] <= free[3] < 65536:
        raise TorchmarError(
            f"SAGEMAKER_SAFE_PORT_RANGE={text}: no range of four ports and more", hint="write it like 21000-21999"
        )
    return free[:4]


def _number(environment: Mapping[str, str], variable: str, *, least: int) -> str | None:
    text = environment.get(variable, "").strip()
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise TorchmarError(f"{variable}={text}: not a whole number of at least {least}")
    return text


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TorchmarError(f"{folder} cannot be made: {error.strerror}", hint="SageMaker makes it") from None
    return folder
