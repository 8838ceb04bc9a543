"""The server's configuration: ``config.properties`` and ``TS_*`` variables as typed values.

The keys are those of `torchmar.server.config.keys`; which goes before which is TorchServe's, seen by running it.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torchmar import gpus, properties
from torchmar.errors import PropertiesError
from torchmar.server.config import startup_models
from torchmar.server.config import values as config_values
from torchmar.server.config.keys import IGNORED_KEYS, SUPPORTED_KEYS, TOKEN_VARIABLES, VARIABLES, ConfigKey, suggest
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.config.values import Address, flag, pattern
from torchmar.server.http import Cors
from torchmar.server.telemetry.logs import Layout

_MAKE_TOKEN = "openssl rand -hex 24"
_VARIABLE = re.compile(r"\$\$([^$]+[^$])\$\$")
_MAKE_KEY = "openssl req -x509 -newkey rsa:2048 -nodes -days 365 -keyout key.pem -out cert.pem makes both"


@dataclass(frozen=True)
class Settings:
    """What a server is configured to; the names are TorchServe's keys, wherever one key is one value.

    Attributes:
        model_store: the folder with the archives.
        file: the ``config.properties`` that was read.
        inference, management, metrics: where the APIs listen over HTTP; two may be at one address.
        grpc_inference, grpc_management: where they listen over gRPC.
        grpc_ages: milliseconds that a connection over gRPC may live, and then may take to end, by the keys' names.
        ts_open_inference_protocol: whether KServe's protocol is spoken over gRPC.
        load_models: registrations at the start, ``(name or "", url)``; or ``"all"``. See `startup_models`.
        model_snapshot: the models of a snapshot of TorchServe's, or that KServe lists; None: there is none.
        models: what versions are served with, by model and version, under TorchServe's names (``minWorkers``).
        default_workers_per_model: of a registration that names none; 0 is none.
        default_response_timeout: seconds.
        default_startup_timeout: seconds.
        default_service_handler: of archives that name none.
        unregister_model_timeout: seconds that an unregistration may take.
        service_envelope: ``kserve``, ``kservev2``, ...; empty: none.
        job_queue_size: requests that may wait, for each version.
        max_request_size, max_response_size: bytes.
        limit_max_image_pixels, decode_input_request, ipex_enable: passed to workers.
        blacklist_env_vars: names of variables that workers do not get.
        number_of_gpu: GPUs to use, not more than there are.
        tokens: whether a token is needed.
        token_expiration_min: minutes that a token lives.
        fixed_tokens: tokens by API that stay as they are, of ``torchmar_inference_token_file``,
            ``torchmar_management_token_file`` or the variables of
            `TOKEN_VARIABLES`; the others are random, and expire.
        health_token: ``torchmar_health_token``; whether health checks need a token, too.
        model_api: whether models may be registered and unregistered.
        allowed_urls: what URLs of archives match; default: those of the model store.
        install_py_dep_per_model: whether the requirements in archives are installed.
        private_key_file, certificate_file: PEM, for TLS.
        grpc_tls: whether gRPC wants TLS, too.
        cors: None without ``cors_allowed_origin``.
        metrics_api: whether the metrics API is served.
        metrics_config: TorchServe's ``metrics.yaml`` in place of its own.
        model_metrics_auto_detect: whether metrics of handlers need not be named there.
        disable_system_metrics: whether the machine's are left out.
        snapshots: ``torchmar_snapshots``; the folder for snapshots; None: none are written.
        check_archives: ``torchmar_check_archives``; whether archives are checked before anything of them runs.
        ignored_checks: ``torchmar_ignore_checks``; codes of checks, or beginnings of codes, that do not count.
        max_download_size: ``torchmar_max_download_size``; bytes of an archive that is fetched.
        worker_memory: ``torchmar_worker_memory``; bytes that a worker on a CPU may have; 0: no limit.
        worker_poll: ``torchmar_worker_poll_us``; microseconds that worker and server stay awake for each other.
        log_format: ``torchmar_log_format``; how lines of logs are laid out.
        access_log: ``torchmar_access_log``; whether there is a line for each request.
    """

    model_store: Path
    file: Path | None = None
    inference: Address = Address("127.0.0.1", 8080)
    management: Address = Address("127.0.0.1", 8081)
    metrics: Address = Address("127.0.0.1", 8082)
    grpc_inference: Address = Address("127.0.0.1", 7070)
    grpc_management: Address = Address("127.0.0.1", 7071)
    grpc_ages: Mapping[str, int] = field(default_factory=dict)
    ts_open_inference_protocol: bool = True
    load_models: tuple[tuple[str, str], ...] | Literal["all"] = ()
    model_snapshot: tuple[StartupModel, ...] | None = None
    models: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    default_workers_per_model: int = 0
    default_response_timeout: int = 120
    default_startup_timeout: int = 120
    default_service_handler: str = ""
    unregister_model_timeout: int = 120
    service_envelope: str = ""
    job_queue_size: int = 100
    max_request_size: int = 6_553_500
    max_response_size: int = 6_553_500
    limit_max_image_pixels: bool = True
    decode_input_request: bool = True
    ipex_enable: bool = False
    blacklist_env_vars: re.Pattern[str] | None = None
    number_of_gpu: int = 0
    tokens: bool = True
    token_expiration_min: float = 60.0
    fixed_tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    health_token: bool = False
    model_api: bool = False
    allowed_urls: tuple[re.Pattern[str], ...] = ()
    install_py_dep_per_model: bool = False
    private_key_file: Path | None = None
    certificate_file: Path | None = None
    grpc_tls: bool = False
    cors: Cors | None = None
    metrics_api: bool = True
    metrics_config: Path | None = None
    model_metrics_auto_detect: bool = False
    disable_system_metrics: bool = False
    snapshots: Path | None = None
    check_archives: bool = True
    ignored_checks: tuple[str, ...] = ()
    max_download_size: int = 20 << 30
    worker_memory: int = 0
    worker_poll: int = 300
    log_format: Layout = "text"
    access_log: bool = False

    def startup_models(self) -> list[StartupModel]:
        """Return what the server loads at its start.

        That is the snapshot, which goes before ``load_models``, as TorchServe has it; for ``all``, every archive that
        is in the model store now.
        """
        if self.model_snapshot is not None:
            return list(self.model_snapshot)
        if self.load_models == "all":
            return startup_models.in_store(self.model_store)
        return [
            StartupModel(url, name=name, fallback=startup_models.fallback_name(url)) for name, url in self.load_models
        ]

    def worker_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of workers: all but those that ``blacklist_env_vars`` names, and TorchServe's own."""
        hidden = self.blacklist_env_vars
        passed = {name: value for name, value in environment.items() if not (hidden and hidden.fullmatch(name))}
        variables = {"TS_DECODE_INPUT_REQUEST": self.decode_input_request, "TS_IPEX_ENABLE": self.ipex_enable}
        return {**passed, **{name: str(value).lower() for name, value in variables.items()}}

    def tls(self) -> ssl.SSLContext | None:
        """Return what listeners with TLS need; None if no key and certificate are configured.

        Raises:
            PropertiesError: they cannot be read, or do not belong together.
        """
        if not self.private_key_file or not self.certificate_file:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # A key with a password would be asked for on the terminal.
            context.load_cert_chain(self.certificate_file, self.private_key_file, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            raise PropertiesError(
                f"private_key_file={self.private_key_file}, certificate_file={self.certificate_file}: "
                f"not a key without password and its certificate, in PEM ({error.strerror or error})",
                hint=_MAKE_KEY,
            ) from None
        return context


def read(
    file: Path | None, environment: Mapping[str, str] = os.environ, **overrides: str
) -> tuple[Settings, list[str]]:
    """Read the server's configuration.

    Args:
        file: a ``config.properties``; None: there is none. ``$$NAME$$`` in its values is a variable.
        environment: with ``enable_envvars_config=true`` in the file, ``TS_KEY`` goes before all else;
            ``TS_ALLOWED_URLS`` needs ``use_env_allowed_urls=true`` besides.
        overrides: keys from a command line, which go before the file.

    Returns:
        The settings, and warnings for the user.

    Raises:
        PropertiesError: the file cannot be read, or values are wrong: file, key, value and an example of each.
    """
    given = _Given(file, environment, overrides)
    values = {key: given.read(key, known) for key, known in SUPPORTED_KEYS.items() if given.text(key)}
    found = {key: value for key, value in values.items() if value is not None}
    settings = _settings(given, found, environment)
    given.raise_problems()
    return settings, [*given.warnings, *_about_keys(given)]


def texts(file: Path | None, environment: Mapping[str, str] = os.environ, **overrides: str) -> dict[str, str]:
    """Return the values that `read` would read, as text: variables and overrides are in their places.

    Raises:
        PropertiesError: the file cannot be read, or names a variable that is not there.
    """
    given = _Given(file, environment, overrides)
    given.raise_problems()
    return given.values


class _Given:
    """Values as text, their origins, and their problems."""

    def __init__(self, file: Path | None, environment: Mapping[str, str], overrides: Mapping[str, str]) -> None:
        self.file = file
        self.values: dict[str, str] = {}
        self.warnings: list[str] = []
        self._problems: list[tuple[str, str]] = []
        self._origins: dict[str, str] = {}
        for key, text in (properties.read(file).values if file else {}).items():
            self._take(key, self._with_variables(key, text, environment), f"{file}: {key}")
        for key, text in overrides.items():
            self._take(key, text, key)
        self._read_environment(environment)

    def text(self, key: str) -> str:
        return self.values.get(key, "").strip()

    def flag(self, key: str) -> bool:
        return self.text(key).lower() == "true"

    def read(self, key: str, known: ConfigKey) -> Any:
        text = self.text(key)
        if known.read is flag and text.lower() not in ("true", "false"):
            self.warnings.append(f"{self.origin(key)}: false, as for TorchServe; write {key}=true or {key}=false")
        try:
            return known.read(text)
        except ValueError as error:
            self.problem(f"{self.origin(key)}: {error}", f"write it like {key}={known.example}")
            return None

    def origin(self, key: str) -> str:
        """Return the origin of a value and its text."""
        return f"{self._origins.get(key, key)}={self.text(key)}"

    def problem(self, what: str, hint: str) -> None:
        self._problems.append((what, hint))

    def raise_problems(self) -> None:
        if len(self._problems) == 1:
            raise PropertiesError(self._problems[0][0], hint=self._problems[0][1])
        if self._problems:
            raise PropertiesError("\n".join(f"{what} ({hint})" for what, hint in self._problems))

    def _take(self, key: str, text: str, origin: str) -> None:
        self.values[key], self._origins[key] = text, origin

    def _with_variables(self, key: str, text: str, environment: Mapping[str, str]) -> str:
        def value(match: re.Match[str]) -> str:
            if (name := match[1]) not in environment:
                self.problem(f"{self.file}: {key}={text}: there is no variable {name}", f"export {name}=...")
            return environment.get(name, "")

        return _VARIABLE.sub(value, text)

    def _read_environment(self, environment: Mapping[str, str]) -> None:
        there = {name: key for name, key in VARIABLES.items() if name in environment}
        if not self.flag("use_env_allowed_urls"):
            there.pop("TS_ALLOWED_URLS", None)
        if self.flag("torchmar_envvars_read"):
            return  # torchmar-serve has put them in their places
        if self.flag("enable_envvars_config"):
            for name, key in there.items():
                self._take(key, environment[name], name)
        elif there:
            names = ", ".join(sorted(there))
            self.warnings.append(
                f"{names}: without effect, as for TorchServe; enable_envvars_config=true has them read"
            )


def _settings(given: _Given, found: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    values = {SUPPORTED_KEYS[key].field: value for key, value in found.items() if SUPPORTED_KEYS[key].field}
    store = _model_store(given)
    for api, port in (("inference", 7070), ("management", 7071)):
        host = given.text(f"grpc_{api}_address") or "127.0.0.1"
        port = found.get(f"grpc_{api}_port") or port
        values[f"grpc_{api}"] = Address(host, port, tls=bool(found.get("enable_grpc_ssl")))
    if found.get("cors_allowed_origin"):
        values["cors"] = Cors(*(given.text(f"cors_allowed_{what}") for what in ("origin", "methods", "headers")))
    if "disable_token_authorization" in found:
        values["tokens"] = not found["disable_token_authorization"]
    if protocol := environment.get("TS_OPEN_INFERENCE_PROTOCOL"):  # TorchServe asks for this one in any case
        values["ts_open_inference_protocol"] = protocol == "oip"
    values["fixed_tokens"] = _fixed_tokens(given, found, environment)
    values["grpc_ages"] = {key: value for key, value in found.items() if "_max_connection_age" in key}
    values["number_of_gpu"] = min(gpus.count(environment), found.get("number_of_gpu", 1 << 20))
    values.setdefault("allowed_urls", (pattern(f"{re.escape(store.as_uri())}/.*"),))
    settings = Settings(model_store=store, file=given.file, **values)
    addresses = (settings.inference, settings.management, settings.metrics, settings.grpc_inference)
    _look_at_tls(given, settings, wanted=any(address.tls for address in addresses))
    return settings


def _fixed_tokens(given: _Given, found: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the tokens that are given by variable or file, by API; a variable goes before a file.

    Messages name the source and never the text, which is a secret.
    """
    tokens = {}
    for api, variable in TOKEN_VARIABLES.items():
        file: Path | None = found.get(f"torchmar_{api}_token_file")
        if environment.get(variable):
            source, text = variable, environment[variable]
        elif file:
            source = given.origin(f"torchmar_{api}_token_file")
            try:
                text = file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not text"
                given.problem(f"{source}: cannot be read: {reason}", f"make it: {_MAKE_TOKEN} > {file}")
                continue
        else:
            continue
        try:
            tokens[api] = config_values.token(text)
        except ValueError as error:
            given.problem(f"{source}: {error}", f"make one: {_MAKE_TOKEN}")
        if given.flag("disable_token_authorization"):
            given.warnings.append(f"{source}: without effect, since disable_token_authorization=true")
    return tokens


def _model_store(given: _Given) -> Path:
    store = Path(given.text("model_store")).resolve()
    if not given.text("model_store"):
        where = f"{given.file}: " if given.file else ""
        given.problem(
            f"{where}model_store is missing",
            "write it like model_store=/srv/model_store, or name it with --model-store",
        )
    elif not store.is_dir():
        given.problem(f"{given.origin('model_store')}: not a folder", "make it, or name the one with the archives")
    return store


def _look_at_tls(given: _Given, settings: Settings, *, wanted: bool) -> None:
    if given.text("keystore"):
        keystore = given.text("keystore")
        if wanted and not (settings.private_key_file and settings.certificate_file):
            given.problem(
                f"{given.origin('keystore')}: a keystore is Java's",
                "in place of it, private_key_file=key.pem and certificate_file=cert.pem, which are made of it by "
                f"openssl pkcs12 -in {keystore} -nodes -nocerts -out key.pem; "
                f"openssl pkcs12 -in {keystore} -nokeys -out cert.pem "
                f"(a JKS first: keytool -importkeystore -srckeystore {keystore} -destkeystore key.p12 "
                "-deststoretype pkcs12)",
            )
        else:
            given.warnings.append(f"{given.origin('keystore')}: without effect here")
    elif wanted:
        for key in ("private_key_file", "certificate_file"):
            path: Path | None = getattr(settings, key)
            if path is None:
                given.problem(f"an address is https, and {key} is missing", _MAKE_KEY)
            elif not path.is_file():
                given.problem(f"{given.origin(key)}: there is no such file", _MAKE_KEY)


def _about_keys(given: _Given) -> list[str]:
    warnings = []
    if ignored := sorted(IGNORED_KEYS.keys() & given.values.keys()):
        warnings.append(f"without meaning here: {', '.join(ignored)}")
    for key in sorted(given.values.keys() - SUPPORTED_KEYS.keys() - IGNORED_KEYS.keys()):
        close = suggest(key)
        where = f"{given.file}: " if given.file else ""
        warnings.append(f"{where}unknown key {key}{f'; did you mean {close}?' if close else ', which is ignored'}")
    return warnings
