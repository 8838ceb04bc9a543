"""torchmar.checks.optimized finds options, files and proofs of optimised weights that are wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from torchmar import checks, optimized_section, recipe
from torchmar.checks import Composed, optimized
from torchmar.manifest import Model

PROOF = "optimized/proof.json"
XML = b'<?xml version="1.0"?>\n<net name="m"></net>\n'
MODEL = Model(
    model_name="m",
    handler="torchmar_handlers.image_classifier",
    serialized_file="net.onnx",
    config_file="model-config.yaml",
)


def composed(
    section: Any, *, more: Mapping[str, bytes] | None = None, model: Model = MODEL, **options: Any
) -> Composed:
    config = {"responseTimeout": 60, "handler": {"optimized": section, **options}}
    members = {
        "net.onnx": b"original",
        "optimized/model.xml": XML,
        "model-config.yaml": yaml.safe_dump(config).encode(),
    }
    return Composed({**members, **(more or {})})


def found(content: Composed, model: Model = MODEL) -> list[tuple[str, str, str]]:
    return [(finding.code.name, finding.severity, finding.cause) for finding in optimized.check(content, model)]


def proof(original: Mapping[str, str]) -> dict[str, bytes]:
    return {PROOF: json.dumps({"original": original}).encode()}


def test_weights_with_a_proof_of_the_same_original_are_right() -> None:
    section = {"weights": "optimized/model.xml", "dtype": "bfloat16", "needs": ["amx_bf16|avx512_bf16", "cuda>=8.0"]}
    digests = optimized.original_digests(composed(section), MODEL)
    assert set(digests) == {"net.onnx"}
    assert found(composed(section, more=proof(digests))) == []
    assert optimized.files(composed(section), MODEL) == ["optimized/model.xml"]
    assert optimized.describe(composed(section), MODEL) == [
        "optimized/model.xml, an OpenVINO model, dtype bfloat16, needs amx_bf16|avx512_bf16 and cuda>=8.0"
    ]


def test_weights_of_another_original_are_an_error() -> None:
    section = {"weights": "optimized/model.xml"}
    ((code, severity, cause),) = found(composed(section, more=proof({"net.onnx": "0" * 64})))
    assert (code, severity) == ("MAR410", "error")
    assert cause == "the optimised weights were made of another net.onnx than that in the archive"
    # The answers of options alone are those of the weights that are there.
    ((code, severity, _),) = found(composed({"dtype": "bfloat16"}, more=proof({"net.onnx": "0" * 64})))
    assert (code, severity) == ("MAR410", "warning")


def test_weights_without_a_proof_are_a_warning() -> None:
    ((code, severity, cause),) = found(composed({"weights": "optimized/model.xml"}))
    assert (code, severity) == ("MAR410", "warning")
    assert "no optimized/proof.json" in cause
    assert found(composed({"dtype": "bfloat16"})) == []


def test_the_model_file_and_what_it_may_import_are_part_of_the_original() -> None:
    model = MODEL.model_copy(update={"model_file": "net.py", "serialized_file": "net.pt", "handler": "handler.py"})
    more = {
        name: name.encode()
        for name in ("net.pt", "net.py", "layers.py", "handler.py", "torchmar_handlers/weights/optimized.py")
    }
    digests = optimized.original_digests(composed({}, more=more), model)
    assert set(digests) == {"net.pt", "net.py", "layers.py"}
    changed = {**more, "layers.py": b"other", **proof(digests)}
    ((code, severity, cause),) = found(composed({"weights": "optimized/model.xml"}, more=changed), model)
    assert (code, severity, "another layers.py" in cause) == ("MAR410", "error", True)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"dtpye": "bfloat16"}, "handler.optimized: there is no option 'dtpye'; did you mean dtype?"),
        ({"threads": 2}, "there is no option 'threads'; there are weights, dtype,"),
        ({"dtype": "int8"}, "dtype: 'int8': Input should be 'float32', 'float16' or 'bfloat16'"),
        (
            {"needs": ["avx512bf16"]},
            "'avx512bf16' is no flag of a processor that torchmar knows; did you mean avx512_bf16",
        ),
        ({"needs": ["cuda>8"]}, "'cuda>8' is no flag of a processor"),
        ({"needs": "avx2"}, "needs: 'avx2': Input should be a valid list"),
        ({"compile": {"modes": "x"}}, "compile: {'modes': 'x'} is neither true nor false nor a mapping of backend"),
        ({"freeze": "yes"}, "freeze: 'yes': Input should be a valid boolean"),
        ("bfloat16", "'bfloat16' is not a mapping such as {weights: optimized/model.xml}"),
    ],
)
def test_a_wrong_option_is_an_error(section: Any, problem: str) -> None:
    ((code, severity, cause),) = found(composed(section))
    assert (code, severity) == ("MAR513", "error")
    assert problem in cause


def test_a_missing_file_is_an_error_and_a_handler_of_ones_own_reads_what_it_likes() -> None:
    section = {"weights": "optimized/nothing.xml"}
    assert ("MAR409", "error", "handler.optimized.weights: there is no file optimized/nothing.xml in the archive") in (
        found(composed(section))
    )
    own = MODEL.model_copy(update={"handler": "handler.py"})
    assert found(composed(section), own) == []
    carried = {"torchmar_handlers/weights/optimized.py": b""}
    findings = found(composed(section, more=carried), own)
    assert {(code, severity) for code, severity, _ in findings} == {("MAR409", "warning"), ("MAR410", "warning")}
    older = {"torchmar_handlers/base.py": b""}
    ((code, severity, cause),) = found(composed({"dtype": "bfloat16"}, more=older))
    assert (code, severity, "does not know the section" in cause) == ("MAR513", "error", True)


def test_sections_of_stages_are_read_and_their_weights_are_original() -> None:
    model = MODEL.model_copy(update={"handler": "torchmar_handlers.cascade", "serialized_file": None})
    stages = [{"handler": "image_classifier", "weights": "net.onnx", "options": {"optimized": {"need": []}}}]
    content = composed(None, stages=stages)
    ((code, _, cause),) = found(content, model)
    assert (code, cause.partition(";")[0]) == (
        "MAR513",
        "handler.stages[0].options.optimized: there is no option 'need'",
    )
    assert set(optimized.original_digests(content, model)) == {"net.onnx"}


def test_damaged_weights_are_a_warning_since_the_original_is_served() -> None:
    content = composed(
        {"weights": "optimized/model.xml"}, more={"optimized/model.xml": XML[:-8], "net.onnx": b"\x08\x08\x12\x00:\x00"}
    )
    manifest = json.dumps({"runtime": "python", "model": MODEL.model_dump(by_alias=True, exclude_none=True)})
    members = {**content._members, "MAR-INF/MANIFEST.json": manifest.encode()}
    findings = {finding.place: finding for finding in checks.check_content(Composed(members))}
    assert findings["optimized/model.xml"].code.name == "MAR406"
    assert findings["optimized/model.xml"].severity == "warning"


def test_a_configuration_without_the_sections_serves_the_original() -> None:
    stages = [{"weights": "a.pt", "options": {"optimized": {}, "mode": "L"}}, {"weights": "b.pt"}]
    config = {"responseTimeout": 60, "handler": {"optimized": {}, "topk": 2, "stages": stages}}
    assert optimized_section.without(config) == {
        "responseTimeout": 60,
        "handler": {"topk": 2, "stages": [{"weights": "a.pt", "options": {"mode": "L"}}, {"weights": "b.pt"}]},
    }
    assert optimized_section.without({"batchSize": 2}) == {"batchSize": 2}


def test_the_schema_of_recipes_has_the_section() -> None:
    schema = recipe.schema()["$defs"]["ServerConfig"]["properties"]["handler"]
    section = schema["properties"]["optimized"]["properties"]
    assert section["needs"]["description"].startswith("Flags that the processor must have")
    assert "$ref" not in json.dumps(section)
