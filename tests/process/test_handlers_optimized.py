"""Handlers serve optimised weights where the machine has what they need, and the original ones elsewhere."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.support import optimized_models as models  # noqa: E402
from torchmar import archive  # noqa: E402
from torchmar.errors import LoadError as WorkerLoadError  # noqa: E402
from torchmar.exchange import Request  # noqa: E402
from torchmar.worker import Worker  # noqa: E402
from torchmar_handlers import weights  # noqa: E402
from torchmar_handlers.weights import LoadError, machine, optimized  # noqa: E402

CPU = torch.device("cpu")
SECTION = {"weights": "optimized/model.onnx"}
FLAG = next(iter(sorted(machine.cpu_flags())), "")
NPY = "application/x-npy"

Serve = Callable[..., Worker]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``net.pt`` and ``optimized/model.onnx``, whose answers differ."""
    folder = tmp_path_factory.mktemp("made")
    net = models.net(models.ImageNet)
    models.save_script(net, folder / "net.pt")
    models.save_onnx(net, folder / "optimized" / "model.onnx", torch.from_numpy(models.image())[None])
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same for rows of a table, with weights of other rows as ``optimized/wide.onnx``."""
    folder = tmp_path_factory.mktemp("table")
    net = models.net(models.TableNet)
    models.save_script(net, folder / "net.pt")
    models.save_onnx(net, folder / "optimized" / "model.onnx", torch.zeros(1, 4))
    net.hidden = torch.nn.Linear(5, 8).requires_grad_(False)
    models.save_onnx(net, folder / "optimized" / "wide.onnx", torch.zeros(1, 5))
    return folder


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that builds a copy of a folder with a section, and runs it in a worker."""
    workers = []

    def serve(made: Path, section: Any, project: Callable[..., Path] = models.image_project, **keys: Any) -> Worker:
        folder = tmp_path / "project"
        shutil.copytree(made, folder)
        for name, content in keys.pop("disk", {}).items():
            (folder / name).write_bytes(content)
        built = archive.build(project(folder, section, **keys), tmp_path / "store")
        workers.append(Worker(built.path))
        return workers[-1]

    yield serve
    for worker in workers:
        worker.close()


def predicted(worker: Worker, number: int = 0) -> list[float]:
    (answer,) = worker.predict_batch([Request(models.npy(models.image(number)), NPY)])
    assert answer.status == 200, answer.body
    return [json.loads(answer.body)[str(label)] for label in range(3)]


def described(worker: Worker) -> Any:
    (answer,) = worker.predict_batch([Request(b"", headers={"describe": "True"})])
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def warnings_of(worker: Worker) -> list[str]:
    return [line for line in worker.log().splitlines() if "are not served" in line]


NET = models.net(models.ImageNet)


def test_optimised_weights_are_served_and_the_original_explains(made: Path, serve: Serve) -> None:
    worker = serve(made, {**SECTION, "needs": [f"{FLAG}|no_such_flag"]})
    image = models.image()
    assert predicted(worker) == pytest.approx(models.probabilities(NET, image, models.SHIFT), abs=1e-5)
    assert described(worker) == {"weights": {"file": "optimized/model.onnx", "optimized": True}}
    assert not warnings_of(worker)
    body = models.npy(image)
    as_json, as_array, as_picture, occlusion = worker.predict_batch(
        [
            Request(body, NPY, explain=True, accept="application/json", headers={"explain-n-steps": "200"}),
            Request(body, NPY, explain=True, accept=NPY),
            Request(body, NPY, explain=True, accept="image/png"),
            Request(body, NPY, explain=True, accept="application/json", headers={"explain-method": "occlusion"}),
        ]
    )
    for answer in (as_json, as_array, as_picture, occlusion):
        assert (answer.status, answer.headers.get("explain-weights")) == (200, "original"), answer
    explanation = json.loads(as_json.body)
    # The label of the prediction, explained by gradients of weights that have some, whose sum is their own score's.
    assert (explanation["label"], explanation["method"]) == ("2", "integrated_gradients")
    assert explanation["probability"] == pytest.approx(predicted(worker)[2], abs=1e-5)
    assert explanation["weights"] == json.loads(occlusion.body)["weights"] == "original"
    assert abs(explanation["convergence_delta"]) < 1e-3
    with torch.no_grad():
        scores, nothing = NET(torch.from_numpy(image)[None])[0], NET(torch.zeros(1, 1, 8, 8))[0]
    total = torch.tensor(explanation["attributions"]).sum().item()
    assert total == pytest.approx((scores - nothing)[2].item(), abs=2e-3)
    assert worker.log().count("are loaded for explanations") == 1


def test_without_a_needed_flag_the_original_is_served_with_one_warning(
    made: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(machine.MASK, FLAG)
    worker = serve(made, {**SECTION, "needs": [FLAG]})
    assert predicted(worker) == pytest.approx(models.probabilities(NET, models.image()), abs=1e-5)
    (warning,) = warnings_of(worker)
    reason = f"this processor has no {FLAG}"
    assert warning.endswith(
        f"the optimised weights (optimized/model.onnx) are not served, but the original net.pt: {reason}"
    )
    assert described(worker) == {"weights": {"file": "net.pt", "optimized": False, "reason": reason}}
    (answer,) = worker.predict_batch(
        [Request(models.npy(models.image()), NPY, explain=True, accept="application/json")]
    )
    assert "explain-weights" not in answer.headers and "weights" not in json.loads(answer.body)


def test_weights_that_do_not_load_or_do_not_take_a_sample_are_not_served(made: Path, serve: Serve) -> None:
    worker = serve(made, SECTION, disk={"optimized/model.onnx": b"\x08\x08\x12junk"})
    assert predicted(worker) == pytest.approx(models.probabilities(NET, models.image()), abs=1e-5)
    (warning,) = warnings_of(worker)
    assert "net.pt: model.onnx is an ONNX model that ONNX Runtime" in warning


def test_a_failing_sample_makes_the_original_the_model(table: Path, serve: Serve) -> None:
    """An image model of another size does not fail before it is called."""
    folder = table.parent / "small"
    folder.mkdir(exist_ok=True)
    net = models.net(models.ImageNet)
    models.save_script(net, folder / "net.pt")
    (folder / "optimized").mkdir(exist_ok=True)
    shutil.copy(table / "optimized" / "model.onnx", folder / "optimized" / "model.onnx")
    sample = {"input": "image.npy", "expect": {}}
    disk = {"image.npy": models.npy(models.image())}
    worker = serve(folder, SECTION, disk=disk, samples=[sample])
    assert predicted(worker) == pytest.approx(models.probabilities(NET, models.image()), abs=1e-5)
    (warning,) = warnings_of(worker)
    assert warning.endswith("a sample of the archive fails with them, with the error above")


@pytest.mark.parametrize(("file", "served"), [("model.onnx", True), ("wide.onnx", False)])
def test_a_table_is_served_by_weights_that_take_its_rows(table: Path, serve: Serve, file: str, served: bool) -> None:
    worker = serve(table, {"weights": f"optimized/{file}"}, models.table_project)
    answer, explained = worker.predict_batch(
        [
            Request(b'{"a": 1, "b": 2, "c": 3, "d": 4}', "application/json"),
            Request(b'{"a": 1, "b": 2, "c": 3, "d": 4}', "application/json", explain=True),
        ]
    )
    net = models.net(models.TableNet)
    scores = net(torch.tensor([[1.0, 2, 3, 4]]))[0]
    scores[2] += models.SHIFT if served else 0
    expected = {str(label): round(value, 6) for label, value in enumerate(scores.softmax(0).tolist())}
    assert json.loads(answer.body) == pytest.approx(expected, abs=1e-5)
    explanation = json.loads(explained.body)
    assert (explanation["method"], explanation.get("weights")) == (
        "integrated_gradients",
        "original" if served else None,
    )
    assert len(warnings_of(worker)) == (not served)


def test_a_text_is_explained_by_an_original_that_takes_its_inputs_in_another_order(
    tmp_path: Path, serve: Serve
) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = tmp_path / "text"
    folder.mkdir()
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3, "d": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    net = models.net(models.TextNet)
    models.save_script(net, folder / "net.pt")
    inputs = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)
    swapped, names = models.Swapped(net), ("input_ids", "attention_mask")
    models.save_onnx(swapped, folder / "optimized" / "model.onnx", *inputs, names=names)
    requests = [Request(text, "text/plain", explain=True, headers={"explain-target": "0"}) for text in (b"a b d", b"c")]
    worker = serve(folder, SECTION, models.text_project)
    (predicted,) = worker.predict_batch([Request(b"a b d", "text/plain")])
    with torch.no_grad():
        scores = swapped(torch.tensor([[1, 2, 4]]), torch.ones(1, 3, dtype=torch.long))[0]
    scores[2] += models.SHIFT
    expected = {str(label): round(value, 6) for label, value in enumerate(scores.softmax(0).tolist())}
    assert json.loads(predicted.body) == pytest.approx(expected, abs=1e-5)
    explained = [json.loads(answer.body) for answer in worker.predict_batch(requests)]
    shutil.rmtree(tmp_path / "project")
    alone = [json.loads(answer.body) for answer in serve(folder, None, models.text_project).predict_batch(requests)]
    for got, wanted in zip(explained, alone, strict=True):
        assert (got["weights"], got["method"]) == ("original", "integrated_gradients")
        assert got["tokens"] == wanted["tokens"]


def test_stages_of_a_cascade_have_weights_of_their_own(made: Path, serve: Serve, tmp_path: Path) -> None:
    stage = {"handler": "image_classifier", "weights": "net.pt"}
    options = {"mode": "L", "resize": None}
    stages = [{**stage, "options": {**options, "optimized": SECTION}}, {**stage, "options": options}]
    config = {"responseTimeout": 60, "handler": {"mode": "mean", "stages": stages}}
    files = {"optimized": "optimized", "net.pt": "net.pt"}
    worker = serve(made, None, handler="torchmar_handlers.cascade", weights=None, config=config, files=files)
    both = zip(*(models.probabilities(NET, models.image(), shift) for shift in (0, models.SHIFT)), strict=True)
    assert predicted(worker) == pytest.approx([sum(pair) / 2 for pair in both], abs=1e-5)
    assert described(worker) == {"weights": [{"file": "optimized/model.onnx", "optimized": True}, None]}


def test_an_unknown_option_keeps_the_model_from_loading(made: Path, serve: Serve) -> None:
    with pytest.raises(WorkerLoadError) as error:
        serve(made, {**SECTION, "dtpye": "bfloat16"})
    assert "model-config.yaml: handler.optimized.dtpye: no option is called so" in error.value.traceback
    with pytest.raises(LoadError, match=r"handler\.optimized\.dtype: 'int8' cannot be used; allowed: float32"):
        optimized.Section.of({"dtype": "int8"})
    for given, problem in ((["x"], "is not a mapping"), ({"weights": 1}, "weights: 1 is"), ({"needs": "x"}, "needs:")):
        with pytest.raises(LoadError, match=problem):
            optimized.Section.of(given)


# ----------------------------------------------------------------------------------------- in this process


@pytest.fixture
def load(made: Path, tmp_path: Path) -> Callable[..., optimized.ServedWeights]:
    """Return a function that loads the weights of an extracted archive."""
    folder = tmp_path / "extracted"

    def load(section: Any, damage: str = "", **options: Any) -> optimized.ServedWeights:
        if not folder.exists():
            project = tmp_path / "project"
            shutil.copytree(made, project)
            built = archive.build(models.image_project(project, SECTION), tmp_path / "store")
            with archive.Archive(built.path) as packed:
                packed.extract(folder)
        if damage:
            content = bytearray((folder / damage).read_bytes())
            content[-1] ^= 1
            (folder / damage).write_bytes(content)
        return optimized.load(folder, "net.pt", None, CPU, {**options, "optimized": section}, threads=1)

    return load


def test_a_damaged_file_is_not_served(
    load: Callable[..., optimized.ServedWeights], caplog: pytest.LogCaptureFixture
) -> None:
    assert load(SECTION).optimized
    assert not caplog.records
    served = load(SECTION, damage="optimized/model.onnx")
    assert not served.optimized
    assert served.reason == "optimized/model.onnx is damaged: it has another digest than SHA256SUMS lists"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_weights_of_another_original_are_not_served(made: Path, tmp_path: Path) -> None:
    project, folder = tmp_path / "project", tmp_path / "extracted"
    shutil.copytree(made, project)
    (project / "optimized" / "proof.json").write_text(json.dumps({"original": {"net.pt": "0" * 64}}))
    built = archive.build(models.image_project(project, SECTION), tmp_path / "store")
    with archive.Archive(built.path) as packed:
        packed.extract(folder)
    served = optimized.load(folder, "net.pt", None, CPU, {"optimized": SECTION}, threads=1)
    assert served.reason == "they were made of another net.pt than that in the archive: run torchmar optimize again"


def test_the_original_weights_with_options_explain_themselves(
    load: Callable[..., optimized.ServedWeights],
) -> None:
    served = load({"dtype": "bfloat16", "channels_last": True}, dtype="float32")
    assert (served.optimized, served.file, served.dtype) == (True, "net.pt", torch.bfloat16)
    assert served.explaining() == optimized.Explaining(served.model, torch.bfloat16)
    frozen = load({"freeze": True, "optimize_for_inference": True})
    explaining = frozen.explaining()
    assert explaining.weights == ("original" if explaining.model is not frozen.model else None)
    assert explaining is frozen.explaining()


def test_an_option_that_the_format_does_not_have_is_a_reason(load: Callable[..., optimized.ServedWeights]) -> None:
    served = load({**SECTION, "freeze": True})
    assert served.reason.startswith("model-config.yaml: handler.optimized.freeze: model.onnx is an ONNX model")
    missing = load({"weights": "optimized/nothing.onnx"})
    assert missing.reason.startswith("nothing.onnx: the archive has no such file")


def test_flags_are_those_that_all_processors_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    file = tmp_path / "cpuinfo"
    file.write_text("flags\t\t: avx avx2 amx_int8\nbugs\t\t: x\n\nflags\t\t: avx avx2\n")
    assert machine.cpu_flags(file) == {"avx", "avx2"}
    monkeypatch.setenv(machine.MASK, "avx2, amx_int8")
    assert machine.cpu_flags(file) == {"avx"}
    file.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert machine.cpu_flags(file) == {"fp", "asimd", "bf16"}
    assert machine.cpu_flags(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    ("needs", "missing"),
    [
        ([], ""),
        (["avx2"], ""),
        (["amx_int8|avx2"], ""),
        (["avx2", "amx_int8"], "this processor has no amx_int8"),
        (["amx_int8 | avx512_vnni"], "this processor has neither amx_int8 nor avx512_vnni"),
        (["cuda>=8.0"], "this worker has no GPU, and cuda>=8.0 is needed"),
        (["cuda>=8.0|avx2"], ""),
        (["cuda|bf16"], "this processor has no bf16, and this worker has no GPU, and cuda is needed"),
    ],
)
def test_what_is_missing_is_named(needs: list[str], missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx", "avx2"}))
    assert machine.missing(needs, CPU) == missing


def test_a_machine_of_unknown_flags_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", frozenset)
    assert machine.missing(["avx2"], CPU) == "the flags of this processor are not known, and avx2 is needed"
    assert weights.differentiable(NET)
