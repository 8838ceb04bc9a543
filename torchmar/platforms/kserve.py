"""KServe: the conversion of its TorchServe runtime's folders and variables to the server's configuration.

In KServe's image for TorchServe, a wrapper written in Python listens on the ports 8080 (REST) and 8081 (gRPC), and
forwards the requests to TorchServe in the same container; here one server replaces both. The storage initializer mounts
``config/config.properties`` and ``model-store/`` below ``/mnt/models``. Sources:

- https://github.com/pytorch/serve/tree/master/kubernetes/kserve/kserve_wrapper: ports, ``model_snapshot``,
  ``PROTOCOL_VERSION``;
- https://github.com/kserve/kserve/blob/master/pkg/apis/serving/v1beta1/inference_service_defaults.go: the label
  ``serviceEnvelope``, which the runtime passes as ``TS_SERVICE_ENVELOPE``, and ``PROTOCOL_VERSION``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torchmar.errors import TorchmarError
from torchmar.platforms import Demands
from torchmar.properties import Properties
from torchmar.server.config.keys import TOKEN_VARIABLES, VARIABLES

#: Ports of the wrapper.
PORT, GRPC_PORT = 8080, 8081
#: Folder that the storage initializer fills.
CONFIG, MODEL_STORE = "/mnt/models/config/config.properties", "/mnt/models/model-store"

_MANAGEMENT_PORT = 8085  # port in the example of KServe's documentation
_ENVELOPES = {"v1": "kserve", "v2": "kservev2", "grpc-v2": "kservev2"}
# Text that a Go template writes for a missing label.
_NO_VALUE = ("", "<no value>")


def config_file(environment: Mapping[str, str]) -> Path:
    """Return the configuration that the storage initializer has mounted, or that of the wrapper's ``CONFIG_PATH``."""
    return Path(environment.get("CONFIG_PATH") or CONFIG)


def demands(environment: Mapping[str, str], config: Properties) -> Demands:
    """Return the demands of KServe.

    Args:
        environment: variables, such as ``PROTOCOL_VERSION``; with ``enable_envvars_config``, also ``TS_...``, which
            take precedence over the configuration, as for TorchServe.
        config: ``config/config.properties``. Its tokens, models and sizes are kept; without ``model_snapshot`` and
            ``load_models``, the whole model store is loaded.

    Raises:
        TorchmarError: a variable has an invalid value, or there is no model store.
        PropertiesError: an address is invalid.
    """
    variables = _variables(environment, config)
    configured = {**config.values, **variables}
    store = Path(configured.get("model_store") or MODEL_STORE)
    if not store.is_dir():
        raise TorchmarError(
            f"the model store {store} is not a folder",
            hint="storageUri names a folder with config/config.properties and model-store/",
        )
    values = {**variables, **_addresses(config, variables), "torchmar_envvars_read": "true"}
    envelope = _envelope(environment, configured)
    if envelope:
        values["service_envelope"] = envelope
    if "disable_token_authorization" not in configured and not _has_tokens(environment, configured):
        values["disable_token_authorization"] = "true"  # because clients of KServe have none
    if not any(configured.get(key, "").strip() for key in ("model_snapshot", "load_models")):
        values["load_models"] = "all"
    effective = Properties(None, {**configured, **values})
    grpc_port = effective.get("grpc_inference_port")
    notes = [f"KServe: v1 and v2 at {effective.url('inference_address')}, v2 over gRPC at port {grpc_port}"]
    if envelope:
        notes.append(f"handlers get requests in the envelope {envelope}")
    if effective.flag("disable_token_authorization"):
        notes.append("its requests have no tokens: every client that reaches these ports can use the models")
    return Demands(values=values, model_store=store, notes=tuple(notes))


def _has_tokens(environment: Mapping[str, str], configured: Mapping[str, str]) -> bool:
    return any(
        environment.get(variable) or configured.get(f"torchmar_{api}_token_file")
        for api, variable in TOKEN_VARIABLES.items()
    )


def _variables(environment: Mapping[str, str], config: Properties) -> dict[str, str]:
    """Return the keys that variables of TorchServe set."""
    if not config.flag("enable_envvars_config"):
        return {}
    keys = {key: environment[name] for name, key in VARIABLES.items() if name in environment}
    if not config.flag("use_env_allowed_urls"):
        keys.pop("allowed_urls", None)
    if keys.get("service_envelope", "").strip() in _NO_VALUE:
        keys.pop("service_envelope", None)
    return keys


def _addresses(config: Properties, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the addresses: all interfaces for clients and Prometheus, loopback for management.

    Addresses in the configuration are for the wrapper in the same container; those in variables are kept.
    """
    ports = {address.key: address.port for address in config.addresses() if not address.unix}
    management = ports.get("management_address", _MANAGEMENT_PORT)
    if management in (PORT, GRPC_PORT):
        management = _MANAGEMENT_PORT
    addresses = {
        "inference_address": f"http://0.0.0.0:{PORT}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://0.0.0.0:{ports.get('metrics_address', 8082)}",
        "grpc_inference_address": "0.0.0.0",
        "grpc_inference_port": str(GRPC_PORT),
        "grpc_management_address": "127.0.0.1",
    }
    return {key: value for key, value in addresses.items() if key not in variables}


def _envelope(environment: Mapping[str, str], configured_values: Mapping[str, str]) -> str:
    """Return the envelope of requests: the configured one, or that of the protocol.

    If the runtime does not pass the label, there is no envelope, as for TorchServe.

    Raises:
        TorchmarError: the protocol is unknown.
    """
    protocol = environment.get("PROTOCOL_VERSION", "").strip() or "v1"
    if protocol not in _ENVELOPES:
        raise TorchmarError(
            f"PROTOCOL_VERSION={protocol}: no protocol of KServe", hint=f"it is one of {', '.join(_ENVELOPES)}"
        )
    if configured := configured_values.get("service_envelope", "").strip():
        return configured
    is_read = configured_values.get("enable_envvars_config", "").strip().lower() == "true"
    return _ENVELOPES[protocol] if is_read and "TS_SERVICE_ENVELOPE" in environment else ""
