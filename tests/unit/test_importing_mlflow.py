"""torchmar.importing.mlflow turns models of MLflow's pytorch flavour into recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from torchmar import recipe
from torchmar.errors import TorchmarError
from torchmar.importing import mlflow


def model(folder: Path, files: dict[str, str] | None = None, **keys: Any) -> Path:
    """Write the folder of a model, whose weights are an empty pickle."""
    document = {"flavors": {"pytorch": {"model_data": "data", "code": None}, "python_function": {}}, **keys}
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "model.pth").write_bytes(b"\x80\x02}.")
    for name, text in {"MLmodel": yaml.safe_dump(document), **(files or {})}.items():
        (folder / name).write_text(text)
    return folder


def test_a_model_becomes_a_recipe_with_its_example_as_sample(tmp_path: Path) -> None:
    requirements = "mlflow==3.6.0\ntorch==2.13.0\ntorchvision==0.28.0\ncloudpickle==3.1.3\n"
    folder = model(
        tmp_path / "my model",
        {
            "requirements.txt": requirements,
            "conda.yaml": "",
            "python_env.yaml": "",
            "serving_input_example.json": '{"inputs": [[1]]}',
        },
    )
    imported = mlflow.import_model(folder, tmp_path / "archives")
    document = yaml.safe_load((imported.folder / recipe.FILE_NAME).read_text())
    assert document == {
        "name": "my-model",
        "version": "1.0",
        "handler": "torchmar_handlers.mlflow",
        "files": {"MLmodel": "MLmodel", "data": "data"},
        "requirements": "requirements.txt",
        "samples": [{"input": "serving_input_example.json"}],
    }
    assert (imported.folder / "requirements.txt").read_text() == "torchvision==0.28.0\ncloudpickle==3.1.3\n"
    notes = "\n".join(imported.notes)
    assert "data/model.pth is a pickle, and loading it runs code" in notes
    assert "left out of requirements.txt: mlflow==3.6.0, torch==2.13.0;" in notes
    assert (folder / "requirements.txt").read_text() == requirements


def test_an_input_example_of_older_versions_becomes_a_request(tmp_path: Path) -> None:
    info = {"artifact_path": "input_example.json", "type": "dataframe", "pandas_orient": "split"}
    example = {"columns": ["a"], "data": [[1.5]]}
    folder = model(tmp_path / "m", {"input_example.json": json.dumps(example)}, saved_input_example_info=info)
    imported = mlflow.import_model(folder, tmp_path / "archives", name="old")
    sample = json.loads((imported.folder / "serving_input_example.json").read_text())
    assert sample == {"dataframe_split": example}


@pytest.mark.parametrize(
    ("files", "remove", "message"),
    [
        ({}, "MLmodel", "is no MLflow model: it has no MLmodel"),
        ({"MLmodel": "flavors: ["}, "", "MLmodel is not YAML"),
        ({"MLmodel": "a: 1"}, "", "names no flavors"),
        ({"MLmodel": "flavors: {sklearn: {}}"}, "", "of the flavors sklearn; only pytorch can be imported"),
        ({"MLmodel": "flavors: {pytorch: {model_data: ../data}}"}, "", "outside of the model's folder"),
        ({"MLmodel": "flavors: {pytorch: {code: code}}"}, "", "names the folder code, which is not there"),
        ({"MLmodel": "flavors: {pytorch: {code: /}}"}, "", "code is /, outside of the model's folder"),
        (
            {"MLmodel": "flavors: {pytorch: {}}\nsaved_input_example_info: {artifact_path: ../x.json}"},
            "",
            "artifact_path is ../x.json, outside of the model's folder",
        ),
        ({}, "data/model.pth", "has neither model.pth nor model.pt2"),
    ],
)
def test_what_is_no_such_model_is_refused_and_nothing_is_written(
    tmp_path: Path, files: dict[str, str], remove: str, message: str
) -> None:
    folder = model(tmp_path / "m", files)
    if remove:
        (folder / remove).unlink()
    with pytest.raises(TorchmarError, match=message):
        mlflow.import_model(folder, tmp_path / "archives")
    assert not list((tmp_path / "archives").glob("*"))


def test_constraints_stay_where_requirements_use_them(tmp_path: Path) -> None:
    for number, requirements in enumerate(["-c constraints.txt\nscipy\n", "-c constraints.txt\ntorch\n", "scipy\n"]):
        files = {"requirements.txt": requirements, "constraints.txt": "scipy<2\n"}
        imported = mlflow.import_model(model(tmp_path / f"m{number}", files), tmp_path / "archives")
        kept = [name for name in files if (imported.folder / name).is_file()]
        assert kept == [["requirements.txt", "constraints.txt"], [], ["requirements.txt"]][number]


def test_a_file_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TorchmarError, match=r"m/gone cannot be copied: .*No such file"):
        mlflow.import_model(folder, tmp_path / "archives")
    (folder / "gone").unlink()
    (folder / "endless").symlink_to("/dev/zero")
    with pytest.raises(TorchmarError, match="m/endless is a device, a pipe or a socket"):
        mlflow.import_model(folder, tmp_path / "archives")
    (folder / "endless").unlink()
    (folder / "data" / "circle").symlink_to(folder)
    with pytest.raises(TorchmarError, match="data/circle is a link to a folder that it is in"):
        mlflow.import_model(folder, tmp_path / "archives")
    assert not (tmp_path / "archives").exists()
