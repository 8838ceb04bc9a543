"""torchmar.deployment.desired reads deployment.yaml strictly and reports every problem with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchmar.deployment import desired
from torchmar.errors import RecipeError

WHOLE = """\
server:
  config: config.properties
  gpus: 2x80GiB,40GiB
prune: true
models:
  digits:
    default: "2.0"
    keep: 2
    kept_workers: 1
    drain_seconds: 5
    warmup_requests: 50
    checks: {samples: true, requests: more, max_latency: 200}
    versions:
      "1.0":
      "2.0":
        archive: digits-2.0.mar
        min_workers: 2
        max_workers: 4
        batch_size: 8
        max_batch_delay: 10
        response_timeout: 30
        startup_timeout: 120
        devices: [0, 1]
        worker_memory: 6GiB
"""


def problems(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        desired.parse(text)
    return [problem.show() for problem in caught.value.problems]


def test_a_whole_file_is_read() -> None:
    deployment = desired.parse(WHOLE)
    assert deployment.prune
    assert deployment.server.gpus == (80 * 2**30, 80 * 2**30, 40 * 2**30)
    digits = deployment.models["digits"]
    assert digits.default_version == "2.0"
    assert digits.version("2.0").worker_memory == 6 * 2**30
    assert digits.version("1.0").min_workers is None
    assert digits.checks.max_latency == 200


def test_one_version_without_keys_is_enough() -> None:
    model = desired.parse('models: {m: {versions: {"1.0": }}}').models["m"]
    assert (model.default_version, model.keep, model.checks.samples) == ("1.0", 1, True)


def test_every_problem_is_reported_at_once_with_its_line() -> None:
    assert problems(
        """\
server: {modelstore: x}
models:
  digits:
    default: 2.0
    versions:
      2.0:
        batchsize: 8
        min_workers: two
      "2.1":
        worker_memory: 6
        devices: []
  bad name:
    versions: {}
prune: maybe
"""
    ) == [
        "deployment.yaml:1: server: no key is called 'modelstore'; did you mean 'model_store'?",
        'deployment.yaml:4: models.digits.default: write the version in quotes: "2.0"',
        'deployment.yaml:6: models.digits.versions.2.0: write the version in quotes: "2.0"',
        "deployment.yaml:7: models.digits.versions.2.0: no key is called 'batchsize'; did you mean 'batch_size'?",
        "deployment.yaml:8: models.digits.versions.2.0.min_workers: 'two': input should be a valid integer",
        'deployment.yaml:10: models.digits.versions.2.1.worker_memory: write a size with its unit: "6GiB"',
        "deployment.yaml:11: models.digits.versions.2.1.devices: give it content",
        "deployment.yaml:12: models.bad name: 'bad name' cannot be part of a URL (letters, digits, '.', '_', '-' "
        "and in a version '+', a letter or digit first)",
        "deployment.yaml:13: models.bad name.versions: give it content",
        "deployment.yaml:14: prune: 'maybe': input should be a valid boolean",
    ]


def test_names_and_versions_that_yaml_reads_as_something_else_are_shown_as_they_are_written() -> None:
    assert problems(
        "models:\n  on:\n    versions:\n      1.10:\n  null:\n    default: 1.0\n    versions: {0x1: }\n"
    ) == [
        'deployment.yaml:2: models.on: write the name in quotes: "on"',
        'deployment.yaml:4: models.on.versions.1.10: write the version in quotes: "1.10"',
        'deployment.yaml:5: models.null: write the name in quotes: "null"',
        'deployment.yaml:6: models.null.default: write the version in quotes: "1.0"',
        'deployment.yaml:7: models.null.versions.0x1: write the version in quotes: "0x1"',
    ]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("{min_workers: 3, max_workers: 2}", "max_workers (2) is less than min_workers (3)"),
        ("{max_workers: 2}", "set min_workers, too"),
        ("{devices: [0], gpus: 1}", "not both"),
        ("{worker_memory: lots}", "'lots' is no size"),
        ("{batch_size: 99999999999}", "less than or equal to"),
    ],
)
def test_contradictions_are_reported(version: str, message: str) -> None:
    (problem,) = problems(f'models:\n  m:\n    versions:\n      "1.0": {version}\n')
    assert message in problem


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ('{versions: {"1.0": {}, "2.0": {}}}', "name the default version"),
        ('{default: "1.0", versions: {"1.0": {min_workers: 0}, "2.0": {}}}', "would be refused"),
        ('{default: "3.0", versions: {"1.0": {}, "2.0": {}}}', "the default 3.0 is none of its versions (1.0, 2.0)"),
        ('{default: "1.0", versions: {"1.0": {}, "1.0+b2": {}}}', "1.0 and 1.0+b2 are builds of one version"),
    ],
)
def test_a_model_has_one_default_and_one_build_of_each_version(model: str, message: str) -> None:
    (problem,) = problems(f"models:\n  m: {model}\n")
    assert problem.startswith("deployment.yaml:2: models.m: ")
    assert message in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "not YAML"),
        ("- a", "a deployment is a mapping"),
        ("", "a deployment is a mapping"),
        ("prune: false", "models: this key is required"),
        ('models: {m: {versions: {"1": {}}}, m: {versions: {"1": {}}}}', "given twice"),
        ("models: {m: 3}", "this is a mapping of keys"),
        ("? [a]\n: b", "not YAML"),
    ],
)
def test_an_invalid_file_is_reported(text: str, message: str) -> None:
    assert message in problems(text)[0]


def test_a_missing_file_is_reported_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"does not exist \(torchmar capture > deployment.yaml"):
        desired.read(tmp_path / "deployment.yaml")


def test_the_schema_has_a_description_for_every_key() -> None:
    schema = desired.schema()
    json.dumps(schema)
    for part in ("ServerSection", "VersionState", "Checks"):
        for key, value in schema["$defs"][part]["properties"].items():
            assert value.get("description"), (part, key)
    sizes = schema["$defs"]["VersionState"]["properties"]["worker_memory"]["anyOf"]
    assert {"type": "string"} in sizes


def test_a_digest_is_that_of_an_archive_behind_a_url() -> None:
    text = 'models: {m: {versions: {"1.0": {archive: %s, digest: "sha256:%s"}}}}'
    version = desired.parse(text % ("s3://bucket/m.mar", "0" * 64)).models["m"].version("1.0")
    assert version.digest == f"sha256:{'0' * 64}"
    (problem,) = problems(text % ("m.mar", "0" * 64))
    assert "digest is that of an archive behind a URL; set archive, too" in problem
    assert "digest" in problems(text % ("s3://bucket/m.mar", "abc"))[0]
