"""The OpenAPI descriptions are valid and true, and clients that are generated from them work."""

from __future__ import annotations

import base64
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.oracles import python_of
from tests.support.paths import DIGITS, ROOT, SAMPLES
from tests.support.servers import write_config
from torchmar import archive
from torchmar.engines.builtin import Builtin
from torchmar.server.api import inference_openapi, management_openapi
from torchmar.server.api.console import openapi as console_openapi

ORACLES = ROOT / "tests" / "oracles"
# What a description has in two documents, and each of them with and without tokens.
DOCUMENTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "inference": lambda tokens: inference_openapi.describe(tokens=tokens),
    "inference of a model": lambda tokens: inference_openapi.describe_model("digits", tokens=tokens),
    "management": management_openapi.management,
    "console": console_openapi.description,
    "management of a model": lambda tokens: management_openapi.of_model("digits", tokens),
}


class Served:
    """A server with the digits loaded, its addresses and its tokens."""

    def __init__(self, engine: Builtin, folder: Path, loaded: Path) -> None:
        self.folder, self._engine, self._loaded = folder, engine, loaded
        keys = json.loads((engine.folder / "key_file.json").read_text())
        self.tokens = {api: keys[api]["key"] for api in ("inference", "management")}
        self.addresses = {"inference": str(engine.server.inference), "management": str(engine.server.management)}

    def load(self) -> None:
        """Load the digits again, where a test has removed them."""
        if "digits" not in self._engine.management.names():
            self._engine.load(self._loaded)

    def described(self, api: str, path: str = "/") -> Path:
        """Return a file with the description of an API, or of a model."""
        token = {"Authorization": f"Bearer {self.tokens[api]}"}
        answer = requests.options(self.addresses[api] + path, headers=token, timeout=60)
        assert answer.status_code == 200
        file = self.folder / f"{api}{path.replace('/', '-')}.json"
        file.write_bytes(answer.content)
        return file


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openapi")
    path = archive.build(DIGITS, folder / "store").path
    with Builtin(write_config(folder), folder / "store", folder / "run") as running:
        running.load(path)
        yield Served(running, folder, path)


@pytest.fixture
def served(server: Served) -> Served:
    """Return the server, with the digits loaded."""
    server.load()
    return server


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("which", DOCUMENTS)
def test_every_operation_has_an_id_of_its_own_and_typed_answers(which: str, tokens: bool) -> None:
    document = DOCUMENTS[which](tokens)
    operations = [call for calls in document["paths"].values() for call in calls.values()]
    assert max(Counter(call["operationId"] for call in operations).values()) == 1
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    assert all(f'"#/components/schemas/{name}"' in text for name in ("Error",))
    for call in operations:
        assert ("security" in call) <= tokens
        for status, response in call["responses"].items():
            # A renewal has no content to describe; answers of handlers with another status are unknown to the document.
            untold = call["operationId"] == "token" or status == "default"
            assert "content" in response or untold, (call["operationId"], status)
    for name in {reference.split('"')[0] for reference in text.split("#/components/schemas/")[1:]}:
        assert name in schemas


@pytest.mark.oracle
def test_the_descriptions_are_valid(served: Served, tmp_path: Path) -> None:
    files = [
        served.described(api, path)
        for api, path in (
            *(("inference", "/"), ("inference", "/predictions/digits")),
            *(("management", "/"), ("management", "/models/digits")),
        )
    ]
    for which, describe in DOCUMENTS.items():
        files.append(tmp_path / f"{which}.json")
        files[-1].write_text(json.dumps(describe(False)))
    command = [python_of("schemathesis"), "-m", "openapi_spec_validator", *files]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("api", "path", "more"),
    [
        # Requests with PUT or GET are answered as those with POST are, as by TorchServe.
        ("inference", "/", ("--exclude-checks", "unsupported_method")),
        # The same paths with the schemas of a model, which all versions and labels share; paths are fuzzed above.
        (
            "inference",
            "/predictions/digits",
            (
                *("--exclude-checks", "unsupported_method", "--phases", "examples,coverage"),
                *("--exclude-path-regex", "version|label"),
            ),
        ),
        # A renewal would end the token of this test, and a machine may not bear a thousand workers.
        ("management", "/", ("--exclude-operation-id-regex", "token|AutoScale")),
    ],
)
def test_the_server_answers_as_it_describes(served: Served, api: str, path: str, more: tuple[str, ...]) -> None:
    command = [
        *(python_of("schemathesis").parent / "schemathesis", "--config-file", ORACLES / "schemathesis.toml"),
        *("run", served.described(api, path), "--url", served.addresses[api]),
        *("-H", f"Authorization: Bearer {served.tokens[api]}", "--seed", "1", "--max-examples", "2"),
        *("--phases", "examples,coverage,fuzzing", "--request-timeout", "60", *more),
    ]
    ran = subprocess.run(command, cwd=served.folder, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


@pytest.mark.oracle
def test_a_generated_client_works(served: Served, tmp_path: Path) -> None:
    python = python_of("schemathesis")
    for api in ("inference", "management"):
        config = tmp_path / f"{api}.yaml"
        config.write_text(json.dumps({"package_name_override": f"{api}_client", "post_hooks": []}))
        command = [
            *(python.parent / "openapi-python-client", "generate", "--path", served.described(api)),
            *("--config", config, "--output-path", tmp_path / "clients" / f"{api}_client", "--meta", "none"),
            "--fail-on-warning",
        ]
        (tmp_path / "clients").mkdir(exist_ok=True)
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    sample = tmp_path / "sample.json"
    sample.write_text(
        json.dumps({"instances": [{"b64": base64.b64encode((SAMPLES / "seven.png").read_bytes()).decode()}]})
    )
    command = [python, ORACLES / "openapi_client.py", tmp_path / "clients"]
    for api in ("inference", "management"):
        command += [served.addresses[api], served.tokens[api]]
    ran = subprocess.run([*command, sample], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout)
    assert results["ping"] == {"status": "Healthy"}
    assert results["alive"] == {"status": "alive"}
    assert results["models"] == {"models": ["digits"]}
    assert len(results["predictions"]["predictions"]) == 1
    assert results["metadata"]["versions"] == ["1.0"]
    assert results["missing"]["code"] == 404
    assert results["described"] == {"name": "digits", "workers": ["READY"]}
    assert results["listed"] == ["digits"]
    assert results["scaled"]["status"].startswith("Workers scaled to 1")
    assert results["registered"]["code"] == 404
