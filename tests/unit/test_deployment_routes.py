"""torchmar.deployment.routes plans routes with the switches of default versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from torchmar import properties
from torchmar.deployment import actions, desired
from torchmar.deployment.actual import LiveModel, LiveRoute
from torchmar.deployment.capture import capture
from torchmar.deployment.plan import Plan
from torchmar.deployment.plan import plan as make_plan
from torchmar.deployment.startup import startup
from torchmar.deployment.store_index import StoredArchive, StoreIndex
from torchmar.errors import RecipeError
from torchmar.management import ModelVersion, WorkerState

STORE = Path("store")
MODELS = 'models: {m: {default: "2.0", versions: {"1.0": {}, "2.0": {}}}}'
ROUTES = 'routes: {/inference: m, /v2x/score: {model: m, version: "1.0"}}'
ARCHIVES = {
    ("m", number): StoredArchive(STORE / f"m-{number}.mar", "m", number, {}, False, "") for number in ("1.0", "2.0")
}
INDEX = StoreIndex(STORE, {stored.path.name: stored for stored in ARCHIVES.values()})


def version(number: str) -> ModelVersion:
    worker = WorkerState(id="0", status="READY", pid=1)
    return ModelVersion(
        name="m",
        version=number,
        url=f"m-{number}.mar",
        min_workers=1,
        max_workers=1,
        batch_size=1,
        max_batch_delay=100,
        response_timeout=120,
        workers=(worker,),
    )


LIVE = {"m": LiveModel("m", "2.0", {number: version(number) for number in ("1.0", "2.0")})}


def plan(text: str, routes: Mapping[str, LiveRoute] | None, live: Mapping[str, LiveModel] = LIVE) -> Plan:
    return make_plan(desired.parse(text), live, INDEX, ARCHIVES, live_routes=routes)


def steps(plan: Plan) -> list[str]:
    return [f"{actions.verb(action)} {action.text}" for action in plan.actions]


def test_routes_are_added_changed_and_removed_until_they_are_as_the_file_says() -> None:
    there = {"/inference": LiveRoute("m", "1.0"), "/old": LiveRoute("m")}
    made = plan(f"{ROUTES}\n{MODELS}", there)
    assert [(change.sign, change.what, *change.lines) for change in made.changes] == [
        ("+", "route /v2x/score", "to m 1.0"),
        ("~", "route /inference", "m 1.0 -> m"),
        ("-", "route /old", "not listed"),
    ]
    assert sorted(steps(made)) == ["remove-route /old", "set-route /inference to m", "set-route /v2x/score to m 1.0"]
    assert not plan(f"{ROUTES}\n{MODELS}", {"/inference": LiveRoute("m"), "/v2x/score": LiveRoute("m", "1.0")}).changes


def test_without_the_key_the_routes_of_the_server_stay_and_an_empty_one_removes_them() -> None:
    there = {"/old": LiveRoute("m")}
    assert not plan(MODELS, there).changes
    assert steps(plan(f"routes: {{}}\n{MODELS}", there)) == ["remove-route /old"]


def test_a_route_is_set_after_its_model_is_registered_and_before_old_versions_are_drained() -> None:
    text = 'routes: {/a: m}\nmodels: {m: {keep: 0, versions: {"2.0": {}}}}'
    live = {"m": LiveModel("m", "1.0", {"1.0": version("1.0")})}
    assert [step.split()[0] for step in steps(plan(text, {}, live))] == [
        "register",
        "check",
        "switch",
        "set-route",
        "drain",
        "remove",
    ]


def test_a_route_to_a_version_leads_to_the_build_that_is_registered() -> None:
    text = 'routes: {/a: {model: m, version: "2.0"}}\nmodels: {m: {versions: {"2.0": {}}}}'
    live = {"m": LiveModel("m", "2.0+b1", {"2.0+b1": version("2.0+b1")})}
    archives = {("m", "2.0"): ARCHIVES["m", "2.0"]}
    made = make_plan(desired.parse(text), live, INDEX, archives, live_routes={})
    assert steps(made) == ["set-route /a to m 2.0+b1"]


def test_the_plan_for_torchserve_says_that_it_has_no_routes() -> None:
    made = plan(f"{ROUTES}\n{MODELS}", None)
    (change,) = made.changes
    assert (change.sign, change.what, made.actions) == ("!", "the routes", ())
    assert change.lines[0].startswith("this server has no routes, as TorchServe, so that /inference, /v2x/score cannot")
    assert not plan(f"routes: {{}}\n{MODELS}", None).changes


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ("{/ping: m}", "the route /ping would hide paths of the server's APIs"),
        ("{inference: m}", "is not a path like /inference"),
        ("{/a: n}", "the route /a leads to n, which is none of the models"),
        ('{/a: {model: m, version: "3.0"}}', "the route /a leads to m 3.0; its versions are 1.0, 2.0"),
        ("{/a: {model: m, version: 2.0}}", "in quotes"),
        ("{/a: {model: m, verb: x}}", "verb"),
    ],
)
def test_a_wrong_route_is_rejected(routes: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        desired.parse(f"routes: {routes}\n{MODELS}")


def test_captured_routes_have_an_empty_plan() -> None:
    there = {"/inference": LiveRoute("m"), "/v2x/score": LiveRoute("m", "1.0"), "/gone": LiveRoute("gone")}
    text = capture(LIVE, INDEX, routes=there)
    del there["/gone"]  # leads to no model, which no file can describe
    assert "routes:\n  /inference: m\n" in text
    assert not plan(text, there).changes


def test_a_server_starts_with_the_routes_of_the_file(tmp_path: Path) -> None:
    base = {"model_store": "store", "torchmar_routes": '{"/old": "m"}'}
    file = tmp_path / "config.properties"
    for text, expected in (
        (f"{ROUTES}\n{MODELS}", '{"/inference": {"model": "m"}, "/v2x/score": {"model": "m", "version": "1.0"}}'),
        (MODELS, '{"/old": "m"}'),
    ):
        file.write_text(startup(desired.parse(text), ARCHIVES, INDEX, base))
        assert properties.read(file).get("torchmar_routes") == expected
