"""torchmar.server.config.settings reads config.properties and TS_* variables as TorchServe does."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import ssl
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support.certificates import certify
from tests.support.paths import ROOT
from tests.support.servers import write_config
from torchmar.address import Address
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import PropertiesError, ServerError
from torchmar.properties import Properties
from torchmar.server.config import credentials, keys, reader
from torchmar.server.config.routes import Route
from torchmar.server.config.settings import Settings
from torchmar.server.config.startup_models import StartupModel
from torchmar.server.http import Cors


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def read(store: Path, text: str = "", environment: dict[str, str] | None = None, **overrides: str) -> Settings:
    return read_with_warnings(store, text, environment, **overrides)[0]


def read_with_warnings(
    store: Path, text: str = "", environment: dict[str, str] | None = None, **overrides: str
) -> tuple[Settings, list[str]]:
    file = store.parent / "config.properties"
    file.write_text(f"model_store={store}\n{text}")
    return reader.read(file, environment or {}, **overrides)


def constants() -> bytes:
    """Return TorchServe's own ConfigManager."""
    spec = importlib.util.find_spec("ts")
    assert spec and spec.submodule_search_locations
    jar = Path(spec.submodule_search_locations[0]) / "frontend" / "model-server.jar"
    with zipfile.ZipFile(jar) as archive:
        return archive.read("org/pytorch/serve/util/ConfigManager.class")


def test_without_a_configuration_the_values_are_torchserves_defaults(store: Path) -> None:
    settings, warnings = reader.read(None, {}, model_store=str(store))
    assert settings == Settings(model_store=store, allowed_urls=settings.allowed_urls)
    assert not warnings
    assert [str(address) for address in (settings.inference, settings.management, settings.metrics)] == [
        "http://127.0.0.1:8080",
        "http://127.0.0.1:8081",
        "http://127.0.0.1:8082",
    ]


def test_the_projects_own_configuration_is_read_without_a_warning(store: Path) -> None:
    settings, warnings = reader.read(ROOT / "config.properties", {}, model_store=str(store))
    assert not warnings
    assert settings.model_api
    assert settings.tokens
    assert settings.max_request_size == 26214400


def test_every_key_of_torchserve_is_known(store: Path) -> None:
    text = "".join(f"{key}=\n" for key in keys.TORCHSERVE_KINDS.keys() - {"model_store"})
    _, warnings = read_with_warnings(store, text)
    assert not [warning for warning in warnings if "unknown key" in warning]


@pytest.mark.process
def test_every_key_and_variable_that_is_honoured_stands_in_torchserve() -> None:
    code = constants()
    own = {key for key in keys.SUPPORTED_KEYS if key.startswith("torchmar_")}
    assert not [key for key in keys.SUPPORTED_KEYS if key not in own and key.encode() not in code]
    named = {name.decode() for name in re.findall(rb"TS_[A-Z_]+", code)}
    # The loggers, and keys that are read elsewhere or not at all.
    assert named - set(keys.VARIABLES) == {
        "TS_CONFIG_FILE",
        "TS_METRICS",
        "TS_MODEL_SERVER_HOME",
        "TS_OPEN_INFERENCE_PROTOCOL",
    }
    assert not set(keys.VARIABLES) - named


def test_every_field_can_be_configured() -> None:
    composed = {
        "model_store",
        "file",
        "cors",
        "fixed_tokens",
        "grpc_ages",
        "grpc_inference",
        "grpc_management",
        "number_of_gpu",
        "tokens",
    }
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert fields - {known.field for known in keys.SUPPORTED_KEYS.values()} == composed


def test_every_example_is_read(store: Path) -> None:
    for key, known in keys.SUPPORTED_KEYS.items():
        assert known.read(known.example) is not None, key


def test_keys_of_java_are_named_once(store: Path) -> None:
    _, warnings = read_with_warnings(store, "vmargs=-Xmx1g\nnetty_client_threads=2\nprefer_direct_buffer=true")
    assert warnings == ["without meaning here: netty_client_threads, prefer_direct_buffer, vmargs"]


def test_an_unknown_key_is_reported_with_a_suggestion(store: Path) -> None:
    _, warnings = read_with_warnings(store, "job_queue_sise=3")
    assert warnings == [f"{store.parent}/config.properties: unknown key job_queue_sise; did you mean job_queue_size?"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("max_request_size=lots", "not a whole number of at least 1"),
        ("max_request_size=-5", "not a whole number of at least 1"),
        ("max_request_size=1_000", "not a whole number"),
        ("default_workers_per_model=-1", "at least 0"),
        ("grpc_inference_port=70000", "from 1 to 65535"),
        ("token_expiration_min=nan", "not a number of minutes above 0"),
        ("inference_address=ftp://x", "not an address"),
        ("inference_address=http://127.0.0.1:0", "not an address"),
        ("inference_address=127.0.0.1:8080", "not an address"),
        ("inference_address=unix:relative", "not an address"),
        (f"inference_address=unix:/{'x' * 200}", "not an address"),
        ("torchmar_log_format=xml", "not text or json"),
        ("torchmar_worker_memory=much", "no size; write a number and its unit"),
        ("torchmar_worker_memory=0", "no size"),
        ("metrics_mode=loud", "not log, prometheus or legacy"),
        ("allowed_urls=https://a/.*,*(", "*( is not a regular expression"),
        ("blacklist_env_vars=(", "not a regular expression"),
        ("models={junk", "not JSON"),
        ('models={"m": 3}', "each an object of versions"),
        ('models={"m": {"1.0": {"minWorkers": "many"}}}', "m 1.0: minWorkers is 'many', not a whole number"),
        ("model_store=/nowhere", "not a folder"),
    ],
)
def test_a_wrong_value_is_reported_with_file_key_value_and_an_example(store: Path, line: str, why: str) -> None:
    with pytest.raises(PropertiesError) as caught:
        read(store, line)
    assert caught.value.message.startswith(f"{store.parent}/config.properties: {line}: ")
    assert why in caught.value.message
    key = line.partition("=")[0]
    assert caught.value.hint.startswith((f"write it like {key}=", "make it, or name"))


def test_all_wrong_values_are_reported_at_once(store: Path) -> None:
    with pytest.raises(PropertiesError) as caught:
        read(store, "job_queue_size=x\nmax_response_size=y")
    assert [line.split("=")[0].split()[-1] for line in caught.value.message.splitlines()] == [
        "job_queue_size",
        "max_response_size",
    ]


def test_a_model_store_is_needed(tmp_path: Path) -> None:
    with pytest.raises(PropertiesError, match="model_store is missing"):
        reader.read(None, {})


def test_a_flag_that_is_neither_true_nor_false_is_false_with_a_warning(store: Path) -> None:
    settings, warnings = read_with_warnings(store, "enable_model_api=yes\ndisable_token_authorization=TRUE")
    assert not settings.model_api
    assert not settings.tokens
    assert [warning for warning in warnings if "enable_model_api=yes: false, as for TorchServe" in warning]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://0.0.0.0", Address("0.0.0.0", 8081)),
        ("HTTP://host.name:9/", Address("host.name", 9)),
        ("http://[::1]:81", Address("::1", 81)),
        ("unix:/run/m.sock", Address(unix="/run/m.sock")),
    ],
)
def test_addresses_are_http_or_unix_sockets_and_each_api_has_its_own_port(
    store: Path, text: str, address: Address
) -> None:
    settings = read(store, f"management_address={text}").management
    assert settings == address
    assert keys.SUPPORTED_KEYS["management_address"].read(str(settings)) == address


def test_a_line_end_of_another_system_is_no_part_of_a_value(store: Path) -> None:
    assert read(store, "job_queue_size=7 \r\n").job_queue_size == 7


def test_variables_override_everything_if_the_file_allows_it(store: Path) -> None:
    environment = {"TS_JOB_QUEUE_SIZE": "7", "TS_LOAD_MODELS": "e.mar", "TS_TOKEN_EXPIRATION_TIME_MIN": "0.5"}
    on = read(store, "enable_envvars_config=true\njob_queue_size=3", environment, load_models="flag.mar")
    assert (on.job_queue_size, on.load_models, on.token_expiration_min) == (7, (("", "e.mar"),), 0.5)
    off, warnings = read_with_warnings(store, "job_queue_size=3", environment, load_models="flag.mar")
    assert (off.job_queue_size, off.load_models, off.token_expiration_min) == (3, (("", "flag.mar"),), 60)
    assert warnings[0].startswith("TS_JOB_QUEUE_SIZE, TS_LOAD_MODELS, TS_TOKEN_EXPIRATION_TIME_MIN: without effect")


def test_allowed_urls_are_read_from_a_variable_only_if_that_is_allowed(store: Path) -> None:
    environment = {"TS_ALLOWED_URLS": "http://x/.*"}
    text = "enable_envvars_config=true\nallowed_urls=http://y/.*\n"
    assert [url.pattern for url in read(store, text, environment).allowed_urls] == ["http://y/.*"]
    text += "use_env_allowed_urls=true"
    assert [url.pattern for url in read(store, text, environment).allowed_urls] == ["http://x/.*"]


def test_a_wrong_value_of_a_variable_is_reported_with_the_variable(store: Path) -> None:
    with pytest.raises(PropertiesError, match=r"^TS_JOB_QUEUE_SIZE=x: not a whole number"):
        read(store, "enable_envvars_config=true", {"TS_JOB_QUEUE_SIZE": "x"})


def test_values_may_name_variables_between_dollars(store: Path) -> None:
    assert read(store, "max_request_size=$$SIZE$$00", {"SIZE": "42"}).max_request_size == 4200
    with pytest.raises(PropertiesError, match="there is no variable SIZE"):
        read(store, "max_request_size=$$SIZE$$00")


@pytest.mark.torchserve
def test_the_real_server_takes_variables_in_the_same_order(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_ENABLE_MODEL_API", "false")
    file = write_config(tmp_path, enable_envvars_config="true", enable_model_api="true")
    with TorchServe(file, store, tmp_path / "run") as server, pytest.raises(ServerError) as caught:
        server.management.register("m.mar")
    assert caught.value.status == 405
    environment = {"TS_ENABLE_MODEL_API": "false"}
    assert not reader.read(file, environment, model_store=str(store))[0].model_api


def test_load_models_is_all_or_none_or_names(store: Path) -> None:
    assert read(store, "load_models=NONE").startup_models() == []
    settings = read(store, "load_models=a.mar, b=b-1.0.mar,c=http://h/c.mar?x=1,http://h/d.mar?x=1")
    assert settings.startup_models() == [
        StartupModel("a.mar", fallback="a"),
        StartupModel("b-1.0.mar", name="b", fallback="b_1_0"),
        StartupModel("http://h/c.mar?x=1", name="c", fallback="c"),
        StartupModel("http://h/d.mar?x=1", fallback="d"),
    ]


def test_all_is_every_archive_of_the_model_store(store: Path) -> None:
    for name in ("b.mar", "a.tar.gz", ".hidden.mar", "notes.txt"):
        (store / name).touch()
    (store / "folder" / "MAR-INF").mkdir(parents=True)
    (store / "outer" / "inner" / "MAR-INF").mkdir(parents=True)
    (store / "other").mkdir()
    assert [model.url for model in read(store, "load_models=ALL").startup_models()] == [
        "a.tar.gz",
        "b.mar",
        "folder",
        "outer",
    ]


def test_models_are_by_name_and_version_under_torchserves_names(store: Path) -> None:
    text = 'models={"m": {"1.0": {"defaultVersion": true, "marName": "m.mar", "minWorkers": "2", "batchSize": 4}}}'
    assert read(store, text.replace(" ", "")).models == {
        "m": {"1.0": {"defaultVersion": True, "marName": "m.mar", "minWorkers": 2, "batchSize": 4}}
    }


def test_without_allowed_urls_the_model_store_alone_is_allowed(store: Path) -> None:
    (pattern,) = read(store).allowed_urls
    assert pattern.fullmatch(f"file://{store}/m.mar")
    assert not pattern.fullmatch("file:///etc/passwd")
    assert not pattern.fullmatch("http://localhost/m.mar")


def test_cors_is_on_with_an_origin(store: Path) -> None:
    assert read(store, "cors_allowed_methods=GET").cors is None
    settings = read(store, "cors_allowed_origin=*\ncors_allowed_methods=GET, PUT").cors
    assert settings == Cors("*", "GET, PUT", "")


def test_https_has_a_key_and_its_certificate(store: Path) -> None:
    certify(store)
    text = f"inference_address=https://127.0.0.1\nprivate_key_file={store}/key.pem\ncertificate_file={store}/certificate.pem"
    settings = read(store, text)
    assert settings.inference == Address("127.0.0.1", 443, tls=True)
    context = credentials.tls_context(settings)
    assert isinstance(context, ssl.SSLContext)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_an_unusable_key_is_reported_without_a_prompt(store: Path) -> None:
    certify(store)
    subprocess.run(
        ["openssl", "rsa", "-aes256", "-passout", "pass:x", "-in", store / "key.pem", "-out", store / "locked.pem"],
        check=True,
        capture_output=True,
    )
    for name in ("certificate.pem", "locked.pem"):
        settings = Settings(
            model_store=store, private_key_file=store / name, certificate_file=store / "certificate.pem"
        )
        with pytest.raises(PropertiesError, match="not a key without password and its certificate"):
            credentials.tls_context(settings)


def test_https_without_a_key_is_rejected_with_how_to_make_one(store: Path) -> None:
    with pytest.raises(PropertiesError, match="private_key_file is missing") as caught:
        read(store, "metrics_address=https://127.0.0.1")
    assert "openssl req -x509" in caught.value.message
    with pytest.raises(PropertiesError, match="there is no such file"):
        read(store, "enable_grpc_ssl=true\nprivate_key_file=/nowhere\ncertificate_file=/nowhere")


def test_a_keystore_is_rejected_with_how_to_convert_it(store: Path) -> None:
    with pytest.raises(PropertiesError, match="a keystore is Java's") as caught:
        read(store, "inference_address=https://127.0.0.1\nkeystore=k.p12\nkeystore_pass=secret")
    assert "openssl pkcs12 -in k.p12 -nodes -nocerts -out key.pem" in caught.value.hint
    assert "secret" not in f"{caught.value.message}{caught.value.hint}"
    assert read(store, "keystore=k.p12").inference == Address("127.0.0.1", 8080)


def test_workers_get_no_variable_that_is_blacklisted(store: Path) -> None:
    settings = read(store, "blacklist_env_vars=AWS_.*|TOKEN\ndecode_input_request=false")
    environment = {"AWS_KEY": "1", "TOKEN": "2", "TOKENS": "3", "PATH": "/bin"}
    assert settings.worker_environment(environment) == {
        "TOKENS": "3",
        "PATH": "/bin",
        "TS_DECODE_INPUT_REQUEST": "false",
        "TS_IPEX_ENABLE": "false",
    }


def test_number_of_gpu_limits_the_gpus_in_use(tmp_path: Path) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 0\necho 1\necho 2\n")
    command.chmod(0o755)
    for limit, count in (("2", 2), ("4", 3)):
        settings, _ = reader.read(None, {"PATH": str(tmp_path)}, model_store=str(tmp_path), number_of_gpu=limit)
        assert settings.number_of_gpu == count


def test_the_protocol_over_grpc_is_a_variable_in_either_case(store: Path) -> None:
    assert read(store, "", {"TS_OPEN_INFERENCE_PROTOCOL": "oip"}).ts_open_inference_protocol
    assert not read(
        store, "ts_open_inference_protocol=true", {"TS_OPEN_INFERENCE_PROTOCOL": "no"}
    ).ts_open_inference_protocol


@pytest.mark.parametrize(("text", "bytes_"), [("1073741824", 1 << 30), ("512MiB", 1 << 29), ("", 0)])
def test_a_size_is_bytes_or_has_a_unit(store: Path, text: str, bytes_: int) -> None:
    assert read(store, f"torchmar_worker_memory={text}").worker_memory == bytes_


def test_ports_that_no_address_names_are_those_that_clients_expect(store: Path) -> None:
    for scheme in ("http", "https"):
        values = {f"{api}_address": f"{scheme}://127.0.0.1" for api in ("inference", "management", "metrics")}
        ours = [keys.SUPPORTED_KEYS[key].read(text).port for key, text in values.items()]
        assert ours == [address.port for address in Properties(None, values).addresses()[:3]]


def test_ages_of_grpc_connections_are_by_their_keys(store: Path) -> None:
    assert read(store, "grpc_inference_max_connection_age_ms=5000").grpc_ages == {
        "grpc_inference_max_connection_age_ms": 5000
    }


def test_text_has_variables_and_overrides_in_their_places(store: Path) -> None:
    file = store.parent / "c.properties"
    file.write_text("enable_envvars_config=true\nmodel_store=$$STORE$$\njob_queue_size=1\n")
    texts = reader.texts(file, {"STORE": "/s", "TS_JOB_QUEUE_SIZE": "2"}, enable_model_api="true")
    assert texts == {
        "enable_envvars_config": "true",
        "model_store": "/s",
        "job_queue_size": "2",
        "enable_model_api": "true",
    }


SECRET = "0123456789abcdef.~"


def test_tokens_are_read_from_files_and_variables_and_never_shown(store: Path) -> None:
    file = store.parent / "secret"
    file.write_text(f"{SECRET}\n")
    text = f"torchmar_inference_token_file={file}\ntorchmar_management_token_file={file}"
    other = {"TORCHMAR_SERVER_MANAGEMENT_TOKEN": SECRET[::-1], "TORCHMAR_INFERENCE_TOKEN": "a-token-for-clients"}
    settings = read(store, text, other)
    assert settings.fixed_tokens == {"inference": (SECRET,), "management": (SECRET[::-1],)}
    assert SECRET not in repr(settings)
    file.write_text(f"{SECRET}\n\n  {SECRET[::-1]}\n")
    readers = read(store, f"torchmar_read_token_file={file}").fixed_tokens
    assert readers == {"read": (SECRET, SECRET[::-1])}
    assert read(store, "", {"TORCHMAR_INFERENCE_TOKEN": "a-token-for-clients"}).fixed_tokens == {}
    _, warnings = read_with_warnings(store, f"{text}\ndisable_token_authorization=true")
    assert any("without effect, since disable_token_authorization=true" in warning for warning in warnings)


@pytest.mark.parametrize("text", ["short", "", "with a blank in the middle", "a-line-0123456789\nand a blank-012345"])
def test_a_token_that_clients_could_not_send_keeps_the_server_from_starting(store: Path, text: str) -> None:
    file = store.parent / "secret"
    file.write_text(text)
    with pytest.raises(PropertiesError) as caught:
        read(store, f"torchmar_inference_token_file={file}")
    assert f"torchmar_inference_token_file={file}: not a token of 16 characters or more" in caught.value.message
    assert caught.value.hint == "make one: openssl rand -hex 24"
    assert not text or text not in caught.value.message
    with pytest.raises(PropertiesError, match="No such file"):
        read(store, f"torchmar_inference_token_file={file}.not")


def test_a_route_that_hides_a_path_of_the_api_is_rejected_with_its_key(store: Path) -> None:
    with pytest.raises(
        PropertiesError, match=r"torchmar_routes.*the route /ping would hide paths of the server's APIs"
    ):
        read(store, 'torchmar_routes={"/ping": "clinic"}\n')
    assert read(store, 'torchmar_routes={"/inference": "clinic"}\n').routes == {"/inference": Route("clinic")}
