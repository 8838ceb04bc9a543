"""A language model from an archive for TorchServe's vLLM handler, to be served by vLLM: a command and a manifest.

The handler passes ``handler.vllm_engine_config`` to ``vllm.AsyncEngineArgs``, whose fields are the options of ``vllm
serve``: https://docs.vllm.ai/en/stable/configuration/engine_args.html. The options of vLLM 0.6, for which TorchServe
    0.12
was written, are compared with those of `vllm_options.VERSION`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from torchmar.errors import TorchmarError
from torchmar.exporting import identifiers, manifests, vllm_options

IMAGE = f"vllm/vllm-openai:v{vllm_options.VERSION}"
PORT = 8000
#: The first part of a path in the archive.
ARCHIVE = "\0"
#: The folder at which the manifest mounts the content of the archive.
MOUNT = PurePosixPath("/models")

_START_SECONDS = 600
_PROBE_SECONDS = 10
# Prefixes of options that can only be switched on.
_WITHOUT_NEGATION = ("disable_", "aggregate_engine_logging")
# Options of vLLM 0.6 without an equivalent, with the reason.
_GONE: Mapping[str, str] = {
    "device": "vLLM is installed for one kind of device",
    "disable_async_output_proc": "the engine has no such step any more",
    "disable_logprobs_during_spec_decoding": "use --speculative-config",
    "disable_log_requests": "requests are not logged unless --enable-log-requests is given",
    "enable_prompt_adapter": "vLLM has no prompt adapters any more",
    "engine_use_ray": "the engine runs in a process of its own",
    "guided_decoding_backend": "use --structured-outputs-config",
    "long_lora_scaling_factors": "vLLM has no long LoRA any more",
    "lora_extra_vocab_size": "adapters with further tokens are not supported any more",
    "max_prompt_adapter_token": "vLLM has no prompt adapters any more",
    "max_prompt_adapters": "vLLM has no prompt adapters any more",
    "max_seq_len_to_capture": "use --max-cudagraph-capture-size",
    "multi_step_stream_outputs": "the engine has no multi-step scheduling any more",
    "ngram_prompt_lookup_max": "use --speculative-config",
    "ngram_prompt_lookup_min": "use --speculative-config",
    "num_lookahead_slots": "the scheduler needs none",
    "num_scheduler_steps": "the engine has no multi-step scheduling any more",
    "num_speculative_tokens": "use --speculative-config",
    "override_neuron_config": "vLLM has no Neuron of its own any more",
    "preemption_mode": "the scheduler always recomputes",
    "max_context_len_to_capture": "use --max-cudagraph-capture-size",
    "max_long_partial_prefills": "the scheduler has its own limit",
    "max_num_partial_prefills": "the scheduler has its own limit",
    "qlora_adapter_name_or_path": "use --lora-modules",
    "quantization_param_path": "scales are in the checkpoint",
    "rope_scaling": "use --hf-overrides",
    "rope_theta": "use --hf-overrides",
    "scheduler_delay_factor": "the scheduler has no delay any more",
    "speculative_disable_by_batch_size": "use --speculative-config",
    "speculative_disable_mqa_scorer": "use --speculative-config",
    "speculative_draft_tensor_parallel_size": "use --speculative-config",
    "speculative_max_model_len": "use --speculative-config",
    "speculative_model": "use --speculative-config",
    "speculative_model_quantization": "use --speculative-config",
    "spec_decoding_acceptance_method": "use --speculative-config",
    "swap_space": "the engine does not swap",
    "task": "use --runner and --convert",
    "tokenizer_pool_extra_config": "there is no pool of tokenizers any more",
    "tokenizer_pool_size": "there is no pool of tokenizers any more",
    "tokenizer_pool_type": "there is no pool of tokenizers any more",
    "typical_acceptance_sampler_posterior_alpha": "use --speculative-config",
    "typical_acceptance_sampler_posterior_threshold": "use --speculative-config",
    "use_v2_block_manager": "there is one manager of blocks",
    "worker_use_ray": "use --distributed-executor-backend ray",
}
# TorchServe's keys of a version: those that the command or the manifest covers, and those without a meaning there.
_COVERED = {
    "asyncCommunication",
    "deviceType",
    "parallelLevel",
    "parallelType",
    "minWorkers",
    "startupTimeout",
    "handler",
}
_WITHOUT_EQUIVALENT: Mapping[str, str] = {
    "batchSize": "vLLM batches continuously; max_num_seqs limits it",
    "deviceIds": "the scheduler of the cluster, or CUDA_VISIBLE_DEVICES, chooses GPUs",
    "jobQueueSize": "vLLM queues without a limit",
    "maxBatchDelay": "vLLM batches continuously",
    "maxWorkers": "an autoscaler adds replicas",
    "responseTimeout": "vLLM ends a request when its client has gone",
    "torchrun": "vLLM starts its own processes",
}


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A language model of an archive, with the settings for vLLM.

    Attributes:
        name: name of the model in the archive.
        arguments: arguments of ``vllm serve``: the model, then the options. Paths in the archive begin with `ARCHIVE`.
        gpus: number of GPUs of each replica.
        replicas: number of replicas.
        start_seconds: time limit for a start.
        omitted: a sentence for each setting without an equivalent.
    """

    name: str
    arguments: tuple[str, ...]
    gpus: int = 1
    replicas: int = 1
    start_seconds: int = _START_SECONDS
    omitted: tuple[str, ...] = ()

    @property
    def inside(self) -> bool:
        """Whether the model, an adapter or the template is in the archive."""
        return any(ARCHIVE in argument for argument in self.arguments)


def read(name: str, config: Mapping[str, Any], files: Sequence[str]) -> LanguageModel:
    """Return the language model of a ``model-config.yaml``.

    Args:
        name: name of the model in the archive.
        config: content of the file.
        files: members of the archive.

    Raises:
        TorchmarError: the file names no model, or a value has the wrong type.
    """
    handler = _mapping(config.get("handler"), "handler")
    engine = dict(_mapping(handler.get("vllm_engine_config"), "handler.vllm_engine_config"))
    model = str(engine.pop("model", None) or handler.get("model_path") or "")
    if not model:
        raise TorchmarError(
            "model-config.yaml names no model", hint="handler: {model_path: ...}, or vllm_engine_config: {model: ...}"
        )
    folders = {str(parent) for file in files for parent in PurePosixPath(file).parents}
    is_inside = _plain(model) in folders
    omitted: list[str] = []
    arguments: list[str] = []
    served_names = engine.pop("served_model_name", None) or ([name] if is_inside else None)
    if served_names:
        arguments += ["--served-model-name", *_texts(served_names)]
    adapters = {
        str(key): _placed(str(path), folders) for key, path in _mapping(handler.get("adapters"), "adapters").items()
    }
    if adapters:
        engine["enable_lora"] = True
    for key, value in engine.items():
        if key in vllm_options.NAMES:
            arguments += _argument(key, value)
        elif value is not None:
            reason = _GONE.get(key, "vLLM has no such option; TorchServe's handler ignores it, too")
            omitted.append(f"vllm_engine_config.{key}: {reason}")
    if adapters:
        arguments += ["--lora-modules", *(f"{key}={path}" for key, path in adapters.items())]
    template = handler.get("chat_template")
    if template:
        arguments += ["--chat-template", _placed(str(template), {*folders, *files})]
    supported = {"model_path", "vllm_engine_config", "adapters", "chat_template"}
    omitted += [f"handler.{key}: TorchServe's handler does not read it" for key in handler if key not in supported]
    omitted += [
        f"{key}: {_WITHOUT_EQUIVALENT.get(key, 'it is of TorchServe')}" for key in config if key not in _COVERED
    ]
    gpus = max(1, _count(engine.get("tensor_parallel_size"), 1) * _count(engine.get("pipeline_parallel_size"), 1))
    return LanguageModel(
        name=name,
        arguments=(_placed(model, folders), *arguments),
        gpus=gpus if "tensor_parallel_size" in engine else max(gpus, _count(config.get("parallelLevel"), 1)),
        replicas=max(1, _count(config.get("minWorkers"), 1)),
        start_seconds=max(_START_SECONDS, _count(config.get("startupTimeout"), 0)),
        omitted=tuple(omitted),
    )


def command(model: LanguageModel, content: str = "") -> str:
    """Return the command line that serves a model on this machine, on loopback.

    Args:
        model: the model.
        content: folder with the archive's content, if the model is in the archive.
    """
    words = ["vllm", "serve", *_below(content, model), "--host", "127.0.0.1", "--port", str(PORT)]
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines) + "\n"


def manifest(model: LanguageModel, image: str = IMAGE) -> str:
    """Return a manifest for Kubernetes: a Deployment and a Service.

    Args:
        model: the model.
        image: image of vLLM.

    Raises:
        TorchmarError: the name of the image is not valid for Kubernetes.
    """
    name = _label(model.name)
    labels = {"app.kubernetes.io/name": name}
    secret = {"name": name, "optional": True}
    volumes: list[dict[str, Any]] = [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},  # processes on several GPUs communicate through it
        {"name": "cache", "emptyDir": {}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "cache", "mountPath": "/root/.cache"},
    ]
    if model.inside:
        volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": f"{name}-models", "readOnly": True}})
        mounts.append({"name": "models", "mountPath": str(MOUNT), "readOnly": True})
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": _PROBE_SECONDS}
    container = {
        "name": "vllm",
        "image": manifests.check_image(image),
        "command": ["vllm", "serve"],
        # Otherwise Kubernetes would replace $(NAME) by variables of the container, which are secrets.
        "args": [
            *(argument.replace("$(", "$$(") for argument in _below(str(MOUNT), model)),
            *("--host", "0.0.0.0", "--port", str(PORT)),
        ],
        "env": [
            {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {**secret, "key": "api-key"}}},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {**secret, "key": "hf-token"}}},
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"limits": {"nvidia.com/gpu": str(model.gpus)}},
        "startupProbe": {**probe, "failureThreshold": -(-model.start_seconds // _PROBE_SECONDS)},
        "readinessProbe": dict(probe),
        "livenessProbe": {**probe, "failureThreshold": 6},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": mounts,
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "replicas": model.replicas,
            "selector": {"matchLabels": dict(labels)},
            "template": {
                "metadata": {"labels": dict(labels)},
                "spec": {"automountServiceAccountToken": False, "containers": [container], "volumes": volumes},
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {"selector": dict(labels), "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }
    head = [
        f"Serves {model.name} with vLLM: kubectl apply -f FILE",
        f"Keys: kubectl create secret generic {name} --from-literal=api-key=... --from-literal=hf-token=...",
    ]
    if model.inside:
        head.append(f"The claim {name}-models has what torchmar extract ARCHIVE FOLDER writes.")
    return manifests.show([deployment, service], "\n".join(head))


def _argument(key: str, value: Any) -> list[str]:
    """Return an option of the command line; empty if it is not set."""
    flag = f"--{key.replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        if not value and key.startswith(_WITHOUT_NEGATION):
            return []  # it is the default
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, Mapping):
        return [flag, json.dumps(value)]
    return [flag, *_texts(value)]


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _placed(path: str, members: set[str]) -> str:
    """Return a path in the archive with the prefix `ARCHIVE`; other paths are unchanged."""
    return f"{ARCHIVE}/{_plain(path)}" if _plain(path) in members else path


def _below(folder: str, model: LanguageModel) -> list[str]:
    """Return the arguments for a machine with the archive's content in ``folder``."""
    return [argument.replace(ARCHIVE, folder) for argument in model.arguments]


def _plain(path: str) -> str:
    return str(PurePosixPath(path)) if path and not path.startswith("/") else path


def _mapping(value: Any, section: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TorchmarError(f"model-config.yaml: {section} is not a section", hint=f"{section}: with keys below it")
    return value


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def _label(name: str) -> str:
    """Return a model's name as the name of an object of Kubernetes (RFC 1035): lower case, digits and ``-``."""
    return identifiers.identifier(name, allowed="a-z0-9", longest=50, letter_first=True)
