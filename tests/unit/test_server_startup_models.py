"""torchmar.server.config.startup_models reads the models that a configuration loads, and rejects contradictions."""

from __future__ import annotations

import json

import pytest

from torchmar.server.config.startup_models import StartupModel, explain, parse_snapshot


def snapshot(**versions: object) -> str:
    return json.dumps({"name": "startup.cfg", "modelCount": 1, "models": {"m": versions}})


def test_the_default_version_of_a_snapshot_comes_first() -> None:
    entry = {"marName": "m.mar", "minWorkers": 1, "batchSize": 4, "runtimeType": "python", "handler": "h:f", "new": []}
    models = parse_snapshot(snapshot(**{"1.0": {"marName": "old.mar"}, "2.0": {**entry, "defaultVersion": True}}))
    assert [(model.name, model.version, model.url, model.default) for model in models] == [
        ("m", "2.0", "m.mar", True),
        ("m", "1.0", "old.mar", False),
    ]
    assert models[0].state == {"minWorkers": 1, "batchSize": 4, "runtimeType": "python", "handler": "h:f"}
    assert parse_snapshot('{"models": {}}') == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "no object of models"),
        ('{"models": []}', "no object of models"),
        ('{"models": {"m": []}}', "m is not an object of versions"),
        (snapshot(**{"1.0": 7}), "m 1.0 is not an object"),
        (snapshot(**{"1.0": {}}), "m 1.0: marName, the archive's file name, is missing"),
        (snapshot(**{"1.0": {"marName": "m.mar", "minWorkers": "two"}}), "m 1.0: minWorkers is 'two', not a whole"),
        (snapshot(**{"1.0": {"marName": "m.mar", "minWorkers": -1}}), "m 1.0: minWorkers is -1, less than 0"),
        ('{"models": {"m": {}}}', "m has no version"),
        ('{"models": {"m": {"1.0": {"marName": "a.mar"}, "1.0": {"marName": "b.mar"}}}}', "key '1.0' is given twice"),
    ],
)
def test_an_invalid_snapshot_is_reported_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_snapshot(text)


def test_a_missing_comma_between_two_models_is_reported() -> None:
    two = explain(StartupModel("a.mar b.mar"), "Model not found at: a.mar b.mar")
    assert two == "Model not found at: a.mar b.mar; a comma separates models: load_models=a.mar,b.mar"
    assert explain(StartupModel("a.mar"), "Model not found at: a.mar") == "Model not found at: a.mar"
