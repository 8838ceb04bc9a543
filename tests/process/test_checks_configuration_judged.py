"""Findings about configurations, compared with TorchServe's frontend (SnakeYAML) and worker (yaml.safe_load)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.judges import Frontend
from torchmar.checks import Composed, Finding, configuration
from torchmar.server_config import ServerConfig

# What the frontend takes for a key that it was not given.
DEFAULTS = {"batchSize": 0, "maxNumSequence": 1, "maxSequenceJobQueueSize": 1, "maxRetryTimeoutInSec": 300}
OURS = {"handler", "stages", "torchmar"}  # keys that TorchServe does not have
KEYS = sorted(ServerConfig.model_fields.keys() - {*OURS, "torchrun", "deviceIds", "sequenceTimeoutMSec"})


@pytest.fixture(scope="module")
def frontend() -> Iterator[Frontend]:
    with Frontend() as judge:
        yield judge


def findings(text: str) -> list[Finding]:
    return list(configuration.check(Composed({"c.yaml": text.encode()}), "c.yaml"))


def worker_reads(text: str) -> bool:
    if len(text) > 1 << 20:
        return True  # PyYAML has no limit of length, and takes many seconds
    try:
        yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return False
    return True


def agrees(frontend: Frontend, folder: Path, text: str) -> None:
    """Assert that an error is found exactly where the worker fails or the frontend ends the registration."""
    file = folder / "c.yaml"
    file.write_bytes(text.encode())
    verdict = frontend.read(file)
    frontend_error = verdict.get("error", "")
    ignored = "InvalidModelException" in frontend_error  # the frontend logs it, and goes on without
    works = worker_reads(text)
    fails = not works or bool(frontend_error and not ignored)
    found = findings(text)
    codes = {(finding.code.name, finding.severity) for finding in found}
    assert ("error" in {severity for _, severity in codes}) is fails, (text[:200], codes, verdict)
    assert (("MAR511", "warning") in codes) is (ignored and works), (text[:200], codes, verdict)
    if not frontend_error and not fails:
        values_agree(text, verdict, found)


def values_agree(text: str, verdict: dict[str, Any], found: list[Finding]) -> None:
    """Assert that a value of a key is found wrong exactly where the frontend does not take it."""
    config = yaml.safe_load(text)
    wrong = {finding.cause.partition(" ")[0] for finding in found if finding.code.name == "MAR503"}
    for key in KEYS:
        value = config.get(key)
        if value is None:
            continue
        taken = verdict[key]
        meant = value.lower() if key in ("deviceType", "parallelType") and isinstance(value, str) else value
        if key in wrong:
            # A default may happen to be what was written.
            assert taken != meant or taken in (0, 1, False, 120, 300), (text, key, taken)
        else:
            assert (taken, type(taken)) == (meant, type(meant)) or taken == meant, (text, key, taken)


COLLECTED = {
    "keys": "batchSize: 8\nresponseTimeout: 60\nminWorkers: 1\nmaxWorkers: 2\n",
    "a section with numbers for keys": "responseTimeout: 60\nhandler: {0: cat, 1: dog}\n",
    "a list as the handler's": "handler: [a, b]\n",
    "a text as the handler's": "handler: my_handler.py\n",
    "a key twice": "batchSize: 8\nbatchSize: 4\n",
    "a number as a key": "batchSize: 8\n7: x\n",
    "a flag as a key": "on: x\n",
    "a null as a key": "~: x\n",
    "a number as a key of torchrun": "torchrun: {1: x}\n",
    "torchrun": "torchrun:\n  nproc-per-node: 4\nparallelType: pp\n",
    "nothing": "",
    "a comment": "# nothing\n",
    "a list": "- a\n",
    "a text": "batchSize:8\n",
    "a byte order mark": "\ufeffbatchSize: 8\n",
    "a tab": "batchSize: 8\nx:\n\t- 1\n",
    "two documents": "batchSize: 8\n---\na: 1\n",
    "a document that begins and ends": "---\nbatchSize: 8\n...\n",
    "a directive": "%YAML 1.1\n---\nbatchSize: 8\n",
    "a Python tag": "x: !!python/tuple [1]\n",
    "a set": "x: !!set {a}\n",
    "a binary": "x: !!binary aGVsbG8=\n",
    "an anchor and a merge": "base: &b {batchSize: 8}\n<<: *b\n",
    "an anchor in itself": "x: &x [*x]\n",
    "an unknown anchor": "x: *y\n",
    "a list as a key": "x: {[1, 2]: 3}\n",
    "a date that is none": "x: 2026-13-45\n",
    "a control character": 'x: "\x01"\n',
    "a NUL": "x: \0\n",
    "an emoji": 'x: "\U0001f600"\n',
    "octal, with underscores, sexagesimal": "responseTimeout: 010\nbatchSize: 1_0\nmaxBatchDelay: 1:30\n",
    "numbers in quotes": "batchSize: '8'\nresponseTimeout: \"60\"\n",
    "fractions": "batchSize: 8.0\nresponseTimeout: 0.5\n",
    "too large": "batchSize: 3000000000\n",
    "zero and less": "batchSize: 0\nminWorkers: 0\nmaxWorkers: 0\nresponseTimeout: -1\nmaxBatchDelay: -1\n",
    "depth of 50": "x: " + "[" * 49 + "]" * 49 + "\n",
    "depth of 51": "x: " + "[" * 50 + "]" * 50 + "\n",
    "depth of 52": "x: " + "[" * 51 + "]" * 51 + "\n",
    "50 aliases": "a: &a [1]\nb: [" + ",".join(["*a"] * 50) + "]\n",
    "51 aliases": "a: &a [1]\nb: [" + ",".join(["*a"] * 51) + "]\n",
    "60 aliases of a text": "a: &a x\nb: [" + ",".join(["*a"] * 60) + "]\n",
    "more than 3 MiB": "x: |\n" + (" " + "y" * 1022 + "\n") * 3200,
    "hugging face's own keys": "handler:\n  model_name: gpt2\n  max_length: 50\n  mapping: {0: NEG, 1: POS}\n",
    "micro batching": "micro_batching:\n  micro_batch_size: 4\n  parallelism: {preprocess: 2}\nbatchSize: 16\n",
    "pippy": "pippy:\n  chunks: 1\n  input_names: [input_ids]\ntorchrun:\n  nproc-per-node: 4\n",
}


@pytest.mark.parametrize("text", COLLECTED.values(), ids=COLLECTED)
def test_an_error_is_found_exactly_where_a_server_fails(frontend: Frontend, tmp_path: Path, text: str) -> None:
    agrees(frontend, tmp_path, text)


SCALARS = st.one_of(
    st.integers(-5, 5),
    st.integers(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.sampled_from(["cpu", "GPU", "tpu", "pp", "TP", "pptp", "custom", "8", "", "yes", "0x10", "1_000", "1e3", None]),
    st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Z")), max_size=8),
)
KEY = st.one_of(st.sampled_from(KEYS), st.text("abcXYZ_019-", min_size=1, max_size=6), st.integers(), st.booleans())
VALUE = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1", max_size=2) | st.integers(), inner),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=st.dictionaries(KEY, VALUE, min_size=1, max_size=5), flow=st.booleans(), spelled=st.booleans())
def test_generated_configurations_have_the_findings_that_the_readers_have(
    frontend: Frontend, tmp_path: Path, config: dict[Any, Any], flow: bool, spelled: bool
) -> None:
    text = json.dumps(config) if flow and all(isinstance(key, str) for key in config) else yaml.safe_dump(config)
    if spelled:  # as people write it: what looks like a number is one
        text = text.replace("'", "").replace('"', "") if ":" in text else text
    agrees(frontend, tmp_path, text)


TWICE = {
    "at the top": ("batchSize: 8\nresponseTimeout: 60\nbatchSize: 4\n", {"c.yaml:3": "batchSize"}),
    "in a section": ("handler:\n  a: 1\n  b: 2\n  a: 3\n", {"c.yaml:4": "handler.a"}),
    "in a list": ("x:\n- {a: 1, a: 2}\n", {"c.yaml:2": "x.0.a"}),
    "in braces": ("{batchSize: 8, batchSize: 4}\n", {"c.yaml:1": "batchSize"}),
    "a whole section": ("handler: {a: 1}\nhandler: {b: 2}\n", {"c.yaml:2": "handler"}),
    "a number and a text": ("handler: {1: a, '1': b}\n", {}),
    "in two sections": ("a: {x: 1}\nb: {x: 1}\n", {}),
    "two merges": ("a: &a {x: 1}\nb: &b {y: 1}\nc:\n  <<: *a\n  <<: *b\n", {}),
    "an alias of a mapping": ("a: &a {x: 1}\nb: *a\nc: *a\n", {}),
    "a mapping in itself": ("a: &a {x: *a}\n", {}),
}


@pytest.mark.parametrize(("text", "expected"), TWICE.values(), ids=TWICE)
def test_a_key_that_is_given_twice_is_found_at_any_depth(text: str, expected: dict[str, str]) -> None:
    repeated = {
        finding.place: finding.cause.partition(" ")[0] for finding in findings(text) if finding.code.name == "MAR512"
    }
    assert repeated == expected


def test_both_readers_keep_the_last_of_two(frontend: Frontend, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("batchSize: 8\nbatchSize: 4\n")
    assert frontend.read(tmp_path / "c.yaml")["batchSize"] == 4
    assert yaml.safe_load("batchSize: 8\nbatchSize: 4\n") == {"batchSize": 4}
