"""torchmar.deployment changes a real server under load without losing a request, or takes everything back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.deployments import SAMPLES, code, context_of
from tests.support.open_loop import OpenLoop
from tests.support.servers import KilledTorchServe, write_config
from torchmar.deployment import actual, desired, drain, executor, planning
from torchmar.deployment.actions import Drained
from torchmar.deployment.executor import Report
from torchmar.deployment.plan import Plan
from torchmar.deployment.rollback import rollback
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import ResponseTimeoutError, TorchmarError
from torchmar.exchange import Request
from torchmar.inference import InferenceClient

Make = Callable[..., Path]

ONE = Request(b"1", "application/json")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """Run a real TorchServe without models."""
    with _running(tmp_path_factory.mktemp("bare")) as running:
        yield running


@pytest.fixture(scope="module")
def bare_with_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """Run a real TorchServe without models, which counts two GPUs."""
    # TorchServe counts these before it asks nvidia-smi; the models of these tests use none.
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
            running = stack.enter_context(_running(tmp_path_factory.mktemp("gpus")))
        yield running


@contextlib.contextmanager
def _running(folder: Path) -> Iterator[TorchServe]:
    (folder / "model_store").mkdir()
    with KilledTorchServe(write_config(folder), folder / "model_store", folder / "run") as running:
        yield running


@pytest.fixture
def server(bare: TorchServe) -> Iterator[TorchServe]:
    """Return the server as it was: without models, and without archives."""
    yield bare
    _empty(bare)


@pytest.fixture
def server_with_gpus(bare_with_gpus: TorchServe) -> Iterator[TorchServe]:
    """Return the server with two GPUs as it was."""
    yield bare_with_gpus
    _empty(bare_with_gpus)


def _empty(server: TorchServe) -> None:
    for model in actual.read(server.server).values():
        for version in sorted(model.versions, key=lambda one: one == model.default):
            server.management.unregister(model.name, version)
    for file in server.model_store.iterdir():
        file.unlink()


def plan(server: TorchServe, text: str, **more: object) -> Plan:
    deployment = desired.parse(text)
    return planning.make(deployment, context_of(server), **more)  # type: ignore[arg-type]


def apply(server: TorchServe, text: str) -> Report:
    return executor.apply(plan(server, text), server.server)


def becomes(server: TorchServe, text: str) -> None:
    report = apply(server, text)
    assert report.failure is None, report
    assert report.left == []
    assert plan(server, text).actions == ()


def state(server: TorchServe) -> dict[str, object]:
    """Return the compared properties of a server's models; another apply must not change them."""
    return {
        name: (
            model.default,
            {
                version.version: (
                    len(version.workers),
                    version.max_workers,
                    version.batch_size,
                    version.max_batch_delay,
                    version.device_ids,
                )
                for version in model.versions.values()
            },
        )
        for name, model in actual.read(server.server).items()
    }


# The longest time of a response under load, which on a busy machine is not that of the model.
DRAIN = "drain_seconds: 3"


def text(
    version: str = "1.0", keys: str = "min_workers: 1, response_timeout: 60", model: str = "drain_seconds: 2"
) -> str:
    return f'models: {{m: {{default: "{version}", {model}, versions: {{"{version}": {{{keys}}}}}}}}}'


def test_promotion_rollback_batch_size_and_workers_lose_no_request(server: TorchServe, make: Make) -> None:
    for version in ("1.0", "2.0"):
        make(code(), name="m", version=version, samples=SAMPLES, store=server.model_store)
    becomes(server, text(model=DRAIN))
    with OpenLoop(server.server, "m") as load:
        load.wait_for(10)
        becomes(server, text("2.0", model=DRAIN))  # promotion
        assert rollback(server.management, "m").after == "1.0"
        load.wait_for(10)
        assert rollback(server.management, "m", "2.0").before == "1.0"
        becomes(server, text("2.0", "min_workers: 1, batch_size: 4, response_timeout: 60", DRAIN))
        becomes(server, text("2.0", "min_workers: 3, batch_size: 4, response_timeout: 60", DRAIN))
        becomes(server, text("2.0", "min_workers: 1, batch_size: 4, response_timeout: 60", DRAIN))
        becomes(server, text("2.0", "min_workers: 1, batch_size: 1, response_timeout: 60", f"keep: 0, {DRAIN}"))
        load.wait_for(10)
    assert load.lost == {}
    assert load.answered > 100
    # 2.0+b2 and 2.0+b3 had the batches of four; their archives are gone with them.
    assert state(server) == {"m": ("2.0+b4", {"2.0+b4": (1, 1, 1, 100, ())})}
    files = sorted(file.name for file in server.model_store.iterdir())
    assert files == ["m-1.0.mar", "m-2.0+b4.mar", "m-2.0.mar"]


def test_versions_with_a_plus_get_requests_and_become_the_default(server: TorchServe, make: Make) -> None:
    make(code(), name="m", config={"batchSize": 2}, samples=SAMPLES, store=server.model_store)
    becomes(server, text(keys="min_workers: 1, batch_size: 8"))
    assert state(server) == {"m": ("1.0+b1", {"1.0+b1": (1, 1, 8, 100, ())})}
    client = InferenceClient(server.server)
    assert client.request("m", ONE).body == client.request("m", ONE, "1.0+b1").body


def test_a_version_with_wrong_answers_never_gets_traffic_and_everything_is_undone(
    server: TorchServe, make: Make
) -> None:
    make(code(), name="m", samples=SAMPLES, store=server.model_store)
    make(code(), name="other", samples=SAMPLES, store=server.model_store)
    make(code(right=False), name="m", version="2.0", samples=SAMPLES, config={"batchSize": 2}, store=server.model_store)
    becomes(server, text(model=DRAIN))
    before, files = state(server), sorted(server.model_store.iterdir())
    wanted = text("2.0", "min_workers: 1, batch_size: 4", DRAIN).removesuffix("}") + ', other: {versions: {"1.0": {}}}}'
    with OpenLoop(server.server, "m", body=b"1") as load:
        load.wait_for(5)
        report = apply(server, wanted)
        load.wait_for(5)
    assert load.lost == {}
    assert report.failure is not None
    assert "m 2.0+b1 does not answer as it should" in report.failure.message
    assert "json: right is false, not true" in report.failure.message
    assert report.undone
    assert [step.text for step in report.steps if step.verb == "undo"] == ["removed m 2.0+b1", "deleted m-2.0+b1.mar"]
    assert state(server) == before
    assert sorted(server.model_store.iterdir()) == files


def test_a_failure_undoes_the_models_that_started_before_it(server: TorchServe, make: Make) -> None:
    make(code(), name="a", samples=SAMPLES, store=server.model_store)
    make(code(fails=True), name="b", samples=SAMPLES, store=server.model_store)
    report = apply(server, 'models: {a: {versions: {"1.0": }}, b: {versions: {"1.0": }}}')
    assert report.failure is not None
    assert "Failed to start workers" in report.failure.message
    assert (report.undone, state(server)) == (True, {})


def test_a_version_that_is_too_slow_never_gets_traffic(server: TorchServe, make: Make) -> None:
    make(code(), name="m", samples=SAMPLES, store=server.model_store)
    make(code(0.4), name="m", version="2.0", samples=SAMPLES, store=server.model_store)
    becomes(server, text())
    report = apply(server, text("2.0", model="drain_seconds: 2, warmup_requests: 2, checks: {max_latency: 300}"))
    assert report.failure is not None
    assert "m 2.0 takes longer than 300 ms" in report.failure.message
    assert list(actual.read(server.server)["m"].versions) == ["1.0"]


def test_additional_requests_are_sent_besides_the_samples(server: TorchServe, make: Make) -> None:
    refuses = "def handle(rows, context):\n    if rows is not None: raise ValueError"
    make(refuses, name="m", store=server.model_store)
    folder = server.folder / "more"
    folder.mkdir()
    (folder / "one.json").write_text("1")
    report = apply(server, text(model="checks: {requests: more}"))
    assert report.failure is not None
    assert "one.json: status 503" in report.failure.message


@pytest.mark.parametrize("error", ["ValueError", "RuntimeError"])  # TorchServe keeps what fails with the second
def test_a_version_whose_workers_do_not_start_is_removed_again(server: TorchServe, make: Make, error: str) -> None:
    make(code(), name="m", samples=SAMPLES, store=server.model_store)
    fails = code(fails=True).replace("ValueError", error)
    make(fails, name="m", version="2.0", samples=SAMPLES, store=server.model_store)
    becomes(server, text())
    before = state(server)
    assert apply(server, text("2.0")).undone
    assert state(server) == before


def test_a_failure_at_the_last_switch_undoes_the_earlier_ones(server: TorchServe, make: Make) -> None:
    for name in ("a", "b"):
        for version in ("1.0", "2.0"):
            make(code(), name=name, version=version, samples=SAMPLES, store=server.model_store)
    both = f'models: {{a: {{{DRAIN}, versions: {{"V": }}}}, b: {{{DRAIN}, versions: {{"V": }}}}}}'
    becomes(server, both.replace("V", "1.0"))
    before = state(server)
    planned = plan(server, both.replace("V", "2.0"))

    def interfere(step: executor.Step) -> None:
        # The new version's workers are stopped just before it gets its traffic.
        if step.seconds is None and step.text == "b 1.0 to 2.0":
            server.management.scale("b", "2.0", min_worker=0)

    with OpenLoop(server.server, "a") as load:
        report = executor.apply(planned, server.server, interfere)
    assert load.lost == {}
    assert report.failure is not None
    assert "b 2.0 has no worker that answers" in report.failure.message
    assert "a is back at 1.0" in [step.text for step in report.steps]
    assert state(server) == before


def test_an_interruption_takes_everything_back(server: TorchServe, make: Make) -> None:
    for version in ("1.0", "2.0"):
        make(code(), name="m", version=version, samples=SAMPLES, store=server.model_store)
    becomes(server, text())
    before = state(server)

    def interrupt(step: executor.Step) -> None:
        if step.verb == "check" and step.seconds is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.apply(plan(server, text("2.0")), server.server, interrupt)
    assert state(server) == before


def test_running_requests_end_before_their_version_is_removed(server: TorchServe, make: Make) -> None:
    for version in ("1.0", "2.0"):
        make(code(0.5), name="m", version=version, store=server.model_store)
    none = "keep: 0, drain_seconds: 2, warmup_requests: 0"
    becomes(server, text(model=none))
    bodies: list[bytes] = []

    def ask() -> None:
        bodies.append(InferenceClient(server.server, timeout=30).request("m", ONE).body)

    waiting = [threading.Thread(target=ask) for _ in range(4)]

    def send(step: executor.Step) -> None:
        if step.seconds is None and step.verb == "switch":
            for thread in waiting:
                thread.start()
            while server.management.describe("m", "1.0")[0].job_queue.pending_requests < 2:
                time.sleep(0.01)

    report = executor.apply(plan(server, text("2.0", model=none)), server.server, send)
    assert (report.failure, report.left) == (None, [])
    for thread in waiting:
        thread.join()
    assert len(bodies) == 4
    assert list(actual.read(server.server)["m"].versions) == ["2.0"]


def test_without_the_wait_those_in_the_queue_would_never_be_answered(server: TorchServe, make: Make) -> None:
    """TorchServe's own behaviour; if this fails, it drains versions itself."""
    for version in ("1.0", "2.0"):
        make(code(0.3), name="m", version=version, store=server.model_store)
        server.management.register(f"m-{version}.mar", initial_workers=1)
    errors: list[type[TorchmarError]] = []

    def ask() -> None:
        try:
            InferenceClient(server.server, timeout=4).request("m", ONE, "2.0")
        except TorchmarError as error:
            errors.append(type(error))

    waiting = [threading.Thread(target=ask) for _ in range(6)]
    for thread in waiting:
        thread.start()
    while server.management.describe("m", "2.0")[0].job_queue.pending_requests < 4:
        time.sleep(0.01)
    server.management.unregister("m", "2.0")
    for thread in waiting:
        thread.join()
    assert errors.count(ResponseTimeoutError) >= 4


def test_a_version_that_never_drains_stays_and_is_reported(
    server: TorchServe, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "_PATIENCE_SECONDS", 0)
    for version in ("1.0", "2.0"):
        make(code(0.5), name="m", version=version, store=server.model_store)
        server.management.register(f"m-{version}.mar", initial_workers=1)
    ended = threading.Event()

    def ask() -> None:
        client = InferenceClient(server.server, timeout=60)
        while not ended.is_set():
            client.request("m", ONE, "2.0")

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        restless = drain.wait(server.management, [Drained("m", "2.0", 1), Drained("m", "no such", 1)])
    finally:
        ended.set()
        for client in clients:
            client.join()
    assert list(restless) == [("m", "2.0")]
    assert "clients still send requests" in restless["m", "2.0"]


def test_a_second_apply_does_nothing(server: TorchServe, make: Make) -> None:
    make(code(), name="m", samples=SAMPLES, store=server.model_store)
    wanted = text(keys="min_workers: 1, max_workers: 3, batch_size: 2, max_batch_delay: 0, startup_timeout: 60")
    becomes(server, wanted)
    before = state(server)
    assert before == {"m": ("1.0", {"1.0": (1, 3, 2, 0, ())})}
    assert apply(server, wanted).steps == []
    assert state(server) == before


def test_a_kept_version_with_fewer_workers_answers_at_once_and_gets_the_others_back(
    server: TorchServe, make: Make
) -> None:
    for version in ("1.0", "2.0"):
        make(code(), name="m", version=version, samples=SAMPLES, store=server.model_store)
    few = "drain_seconds: 1, kept_workers: 1"
    becomes(server, text(keys="min_workers: 2", model=few))
    becomes(server, text("2.0", "min_workers: 2", few))
    assert state(server) == {"m": ("2.0", {"1.0": (1, 1, 1, 100, ()), "2.0": (2, 2, 1, 100, ())})}
    done = rollback(server.management, "m")
    assert (done.after, done.workers_after, done.workers_before) == ("1.0", 1, 2)
    with pytest.raises(TorchmarError, match=r"no version before 1\.0"):
        rollback(server.management, "m")
    with pytest.raises(TorchmarError, match="is the default already"):
        rollback(server.management, "m", "1.0")


def test_a_parked_model_gets_workers_again_only_if_its_answers_are_right(server: TorchServe, make: Make) -> None:
    make(code(), name="m", samples=SAMPLES, store=server.model_store)
    make(code(right=False), name="wrong", samples=SAMPLES, store=server.model_store)
    parked = text(keys="min_workers: 0, response_timeout: 60")
    becomes(server, text())
    becomes(server, parked)
    assert state(server) == {"m": ("1.0", {"1.0": (0, 0, 1, 100, ())})}
    becomes(server, text())
    assert InferenceClient(server.server).request("m", ONE).status == 200
    becomes(server, parked.replace("{m:", "{wrong:"))
    before = state(server)
    report = apply(server, text().replace("{m:", "{wrong:"))
    assert report.failure is not None
    assert "wrong 1.0 does not answer as it should" in report.failure.message
    assert (report.undone, state(server)) == (True, before)


def test_unlisted_models_are_removed_only_if_the_file_prunes(server: TorchServe, make: Make) -> None:
    make(code(), name="m", samples=SAMPLES, store=server.model_store)
    for version in ("1.0", "2.0"):
        make(code(), name="x", version=version, store=server.model_store)
        server.management.register(f"x-{version}.mar", initial_workers=0)
    becomes(server, text())
    assert set(state(server)) == {"m", "x"}
    becomes(server, f"prune: true\n{text()}")
    assert set(state(server)) == {"m"}


def test_an_archive_outside_the_store_is_copied_into_it(server: TorchServe, make: Make) -> None:
    path = make(code(), name="m", samples=SAMPLES, store=server.folder / "elsewhere")
    becomes(server, text(keys="archive: elsewhere/m-1.0.mar"))
    assert (server.model_store / "m-1.0.mar").read_bytes() == path.read_bytes()


def test_workers_are_on_the_gpus_of_the_plan(server_with_gpus: TorchServe, make: Make) -> None:
    server = server_with_gpus
    code = """
class Model:
    def initialize(self, context):
        self.gpu = context.system_properties["gpu_id"]

    def handle(self, rows, context):
        return [str(self.gpu)] * len(rows)
"""
    for name in ("large", "small"):
        make(code, name=name, store=server.model_store)
    wanted = """
server: {gpus: 2x80GiB}
models:
  small: {drain_seconds: 1, versions: {"1.0": {min_workers: 2, worker_memory: 15GiB, gpus: 1}}}
  large: {drain_seconds: 1, versions: {"1.0": {min_workers: 2, worker_memory: 35GiB}}}
"""
    becomes(server, wanted)
    devices = {name: model.versions["1.0+b1"].device_ids for name, model in actual.read(server.server).items()}
    assert devices == {"large": (0, 1), "small": (0, 0)}
    client = InferenceClient(server.server)
    assert {client.request("large", ONE).body for _ in range(20)} == {b"0", b"1"}
    assert {client.request("small", ONE).body for _ in range(10)} == {b"0"}
    # One worker more: there is room beside the second large one only.
    becomes(
        server,
        wanted.replace("gpus: 1", "gpus: 2").replace(
            "min_workers: 2, worker_memory: 15", "min_workers: 3, worker_memory: 15"
        ),
    )
    assert actual.read(server.server)["large"].versions["1.0+b1"].device_ids == (0, 1)


def test_a_gpu_that_the_server_lacks_is_detected_and_everything_is_undone(
    server_with_gpus: TorchServe, make: Make
) -> None:
    server = server_with_gpus
    make(code(), name="m", store=server.model_store)
    report = apply(server, f"server: {{gpus: 4x80GiB}}\n{text(keys='devices: [3]')}")
    assert report.failure is not None
    assert "the server set device_ids to (), not (3,)" in report.failure.message
    assert "number_of_gpu" in report.failure.hint
    assert state(server) == {}
