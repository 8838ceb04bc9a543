"""torchmar.server.config.routes reads paths of the user's choice, which hide no path of an API."""

from __future__ import annotations

import json

import pytest

from torchmar.server.config import routes
from torchmar.server.config.routes import Route


def test_a_route_leads_to_a_model_or_to_a_version_and_is_written_as_it_is_read() -> None:
    text = '{"/inference": "clinic", "/v2x/score": {"model": "clinic", "version": "2.0"}, "/café": "m"}'
    read = routes.parse(text)
    assert read == {"/inference": Route("clinic"), "/v2x/score": Route("clinic", "2.0"), "/café": Route("m")}
    assert routes.parse(routes.show(read)) == read


@pytest.mark.parametrize(
    "path",
    [
        *("/ping", "/predictions", "/predictions/m", "/explanations/m", "/models", "/models/m/invoke", "/v1", "/v2"),
        *("/v1/models/m:predict", "/v2/models/m/infer", "/invocations", "/api-description", "/metrics", "/token"),
        *("/routes", "/routes/x"),
    ],
)
def test_a_route_hides_no_path_of_the_apis(path: str) -> None:
    with pytest.raises(ValueError, match=f"the route {path} would hide paths of the server's APIs"):
        routes.parse(json.dumps({path: "m"}))


@pytest.mark.parametrize(
    "path", ["", "/", "inference", "/a/", "//a", "/a//b", "/a b", "/a?b", "/a#b", "/a%20b", "/{a}", "/a/../ping", "/."]
)
def test_what_is_not_a_path_is_rejected(path: str) -> None:
    with pytest.raises(ValueError, match="is not a path like /inference"):
        routes.parse(json.dumps({path: "m"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('["/a"]', "not an object like"),
        ('{"/a": "m", "/a": "n"}', "the key '/a' is given twice"),
        ('{"/a": ""}', "/a: not the name of a model"),
        ('{"/a": {"version": "1.0"}}', "/a: not the name of a model, and not an object with model"),
        ('{"/a": {"model": "m", "verb": "explain"}}', "/a: there is no key 'verb'; there are model and version"),
        ('{"/a": {"model": "m", "version": 2.0}}', "/a: version is 2.0; write it in quotes"),
    ],
)
def test_the_place_of_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routes.parse(text)
