"""Real things for the tests: weights trained on real digits, archives made of them, a real server."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torchmar import archive, properties, recipe
from torchmar.engines import EngineName
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin
from torchmar.engines.engine import Engine
from torchmar.engines.torchserve import TorchServe
from torchmar.inference import InferenceClient

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "archives" / "digits"
SAMPLES = DIGITS / "samples"

# A shell that starts the tests in the background has Ctrl-C ignored, and what they start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ECHO = """
def handle(rows, context):
    return None if rows is None else [dict(row) for row in rows]
"""


@pytest.fixture(scope="session", autouse=True)
def weights() -> None:
    """Train the models that nobody has trained yet."""
    subprocess.run([sys.executable, ROOT / "scripts" / "training.py"], check=True)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, weights: None) -> Path:
    """Return the digits archive, in a store of its own."""
    return archive.build(DIGITS, tmp_path_factory.mktemp("store")).path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that builds an archive of one handler file, more files on disk and more recipe keys."""

    def build(
        code: str = ECHO, *, store: Path | None = None, disk: dict[str, str | bytes] | None = None, **keys: object
    ) -> Path:
        folder = tmp_path / f"recipe-{len(list(tmp_path.glob('recipe-*')))}"
        folder.mkdir()
        for name, text in {"handler.py": code, **(disk or {})}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        document = {"name": "made", "version": "1.0", "handler": "handler.py", **keys}
        made = recipe.Recipe.model_validate(document)
        target = (store or tmp_path / "store") / f"{made.name}-{made.version}.mar"
        return archive.pack(archive.collect_members(made, folder), target).path

    return build


def environment_without(folder: Path, names: tuple[str, ...]) -> Path:
    """Make an environment with all that is installed here but what has one of ``names``; return its Python."""
    venv.create(folder)
    (theirs,) = folder.glob("lib/python*/site-packages")
    places = [Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    for place in reversed(places):
        for entry in place.iterdir():
            # Links, not a .pth: what is installed in editable mode must not come along.
            left_out = entry.name.startswith(names) or entry.suffix == ".pth" or entry.name == "__pycache__"
            link = theirs / entry.name
            if not left_out and not link.is_symlink():
                link.symlink_to(entry)
    return folder / "bin" / "python"


def write_config(folder: Path, **more: str) -> Path:
    """Write the project's own configuration with free ports into ``folder``; return the file."""
    values = dict(properties.read(ROOT / "config.properties").values)
    values |= {**free_addresses(), **more}
    file = folder / "config.properties"
    file.write_text(properties.show(values))
    return file


#: Engines that tests of clients and of deployments are run against, by their names.
ENGINES = {engine.name: engine for engine in (TorchServe, Builtin)}
on_both_engines = pytest.mark.parametrize("engine", ENGINES, scope="module")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> EngineName:
    """Return which engine serves; a test that does not say (`on_both_engines`) gets the real TorchServe."""
    name: EngineName = getattr(request, "param", TorchServe.name)
    return name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, digits: Path, engine: EngineName) -> Iterator[Engine]:
    """Run a server with the digits loaded; its model store may be added to."""
    folder = tmp_path_factory.mktemp("server")
    store = folder / "model_store"
    store.mkdir()
    shutil.copy(digits, store)
    with ENGINES[engine](write_config(folder), store, folder / "run") as running:
        running.load(store / digits.name)
        yield running


@pytest.fixture
def client(server: Engine) -> InferenceClient:
    """Return a client of the server."""
    return InferenceClient(server.server)
