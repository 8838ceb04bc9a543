"""torchmar.manifest keeps TorchServe's schema."""

from __future__ import annotations

import json

import pytest

from torchmar import manifest
from torchmar.errors import ManifestError


def test_a_manifest_of_torch_model_archiver_is_read_whole() -> None:
    text = {
        "createdOn": "20/11/2026 10:00:00",
        "runtime": "python",
        "model": {
            "modelName": "m",
            "serializedFile": "m.pt",
            "handler": "image_classifier",
            "modelFile": "model.py",
            "modelVersion": "2.0",
            "requirementsFile": "requirements.txt",
            "configFile": "c.yaml",
            "somethingNew": 1,
        },
        "archiverVersion": "0.12.0",
    }
    read = manifest.parse(json.dumps(text))
    assert (read.name, read.version, read.model.config_file) == ("m", "2.0", "c.yaml")
    assert json.loads(read.to_json()) == text


def test_a_manifest_without_a_version_is_version_1_0_as_for_torchserve() -> None:
    assert manifest.parse('{"model": {"modelName": "m", "handler": "h"}}').version == "1.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "manifest"),
        ("{}", "model: Field required"),
        ('{"model": {"handler": "h"}}', "model.modelName: Field required"),
        ('{"model": {"modelName": "a b", "handler": "h"}}', "model.modelName"),
        ('{"model": {"modelName": "a", "handler": ""}}', "model.handler"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_an_invalid_manifest_is_rejected_with_the_place(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        manifest.parse(text)
