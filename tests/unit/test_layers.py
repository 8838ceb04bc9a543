"""Imports point downward, and modules that need no torch do not import it."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT, TESTS

# From the top to the bottom; a module imports only from layers below its own.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("exporting", "importing", "weight_export"),
    ("deployment", "optimizing", "parity", "tuning"),
    ("diagnosis", "guard", "platforms", "scaffolding", "testing"),
    ("load", "remote_console"),
    ("engines",),
    ("cluster",),
    ("server",),
    ("sample_check",),
    ("worker",),
    ("grpc",),
    ("management", "inference", "metrics"),
    ("connection",),
    ("model_archiver",),
    ("checks",),
    ("archive",),
    ("conversion",),
    ("comparison",),
    ("recipe", "exchange"),
    ("server_config",),
    ("optimized_section",),
    ("handler_names", "manifest", "properties", "strict_yaml", "yaml_editing"),
    ("atomic", "file_lock"),
    ("errors", "tensor_elements", "process_handle", "gpus", "address", "byte_sizes", "openmp", "package_versions"),
)
LEVEL = {name: -depth for depth, names in enumerate(LAYERS) for name in names}
# The same for the packages and modules of torchmar/server/.
SERVER_LAYERS = (
    ("__main__",),
    ("app",),
    ("grpc",),
    ("api",),
    ("models",),
    ("workers",),
    ("config",),
    ("telemetry",),
    ("http",),
    ("sessions",),
    ("tokens",),
    ("api_error",),
    (
        "background_tasks",
        "bind_errors",
        "buffer_receiver",
        "daemon_threads",
        "kserve_errors",
        "request_ids",
        "run_folder",
    ),
)
SERVER_LEVEL = {name: -depth for depth, names in enumerate(SERVER_LAYERS) for name in names}


def modules(package: str = "torchmar") -> Iterator[tuple[str, Path]]:
    """Yield the files of a package, each with the name of the module or package directly below it that has the file."""
    root = ROOT / package.replace(".", "/")
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], file


# A twentieth of the time of a parser. Every import begins a line (scripts/lint); those in examples of docstrings count.
IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|.*)|import[ \t]+(.+))", re.MULTILINE)
NAME = re.compile(r"(?:^|[,(])\s*([\w.]+)")


@functools.cache
def imported(file: Path) -> tuple[str, ...]:
    names: list[str] = []
    for origin, members, imports in IMPORT.findall(file.read_text()):
        names += [origin, *(f"{origin}.{name}" for name in NAME.findall(members))] if origin else NAME.findall(imports)
    return tuple(names)


def test_imports_are_read_as_python_reads_them() -> None:
    """Compare the expression with the parser in the files that have the most kinds of imports."""
    for file in (ROOT / "torchmar" / "archive" / "__init__.py", ROOT / "torchmar" / "cli" / "archives.py"):
        parsed: list[str] = []
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                parsed += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                parsed += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        assert sorted(imported(file)) == sorted(parsed), file


def test_every_module_has_its_layer() -> None:
    assert {name for name, _ in modules()} == set(LEVEL)


def test_imports_point_downward() -> None:
    for name, file in modules():
        for module in imported(file):
            parts = module.split(".")
            if parts[0] == "torchmar" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != name:
                assert LEVEL[parts[1]] < LEVEL[name], f"{file} imports {module}"


def test_every_module_of_the_server_has_its_layer() -> None:
    assert {name for name, _ in modules("torchmar.server")} == set(SERVER_LEVEL)


def test_imports_within_the_server_point_downward() -> None:
    for name, file in modules("torchmar.server"):
        for module in imported(file):
            parts = module.split(".")
            if parts[:2] == ["torchmar", "server"] and len(parts) > 2 and parts[2] != name:
                assert parts[2] in SERVER_LEVEL, f"{file} imports {module}"
                assert SERVER_LEVEL[parts[2]] < SERVER_LEVEL[name], f"{file} imports {module}"


def test_handlers_import_nothing_of_torchmar_and_torchmar_nothing_of_handlers() -> None:
    for file in (ROOT / "handlers").rglob("*.py"):
        assert not [module for module in imported(file) if module.split(".")[0] == "torchmar"], file
    for _, file in modules():
        # Processes of an optimisation load an archive's weights as its worker does, by its own copy of the handlers.
        if not file.is_relative_to(ROOT / "torchmar" / "optimizing" / "process"):
            assert not [module for module in imported(file) if module.split(".")[0] == "torchmar_handlers"], file


def test_tests_import_helpers_from_support_and_never_another_test_module() -> None:
    of_another_test = re.compile(r" *(?:from|import) .*(?:\btest_\w|\btests\.(?:unit|process|server|torchserve)\b)")
    for file in TESTS.rglob("*.py"):
        found = [line for line in file.read_text().splitlines() if "import" in line and of_another_test.match(line)]
        assert not found, f"{file}: {found}"


def test_each_handler_file_defines_exactly_one_class_for_torchserve_to_load() -> None:
    from torchmar import handler_names

    for name in handler_names.carried_handlers():
        tree = ast.parse((ROOT / "handlers" / "torchmar_handlers" / f"{name}.py").read_text())
        assert len([node for node in tree.body if isinstance(node, ast.ClassDef)]) == 1, name


def test_commands_that_need_no_torch_do_not_import_it() -> None:
    code = (
        "import sys\n"
        "from torchmar.cli import main\n"
        "for command in ['--help', 'build --help', 'schema']:\n"
        "    sys.argv = ['torchmar', *command.split()]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, (command, end.code)\n"
        "    heavy = {'torch', 'ts', 'numpy', 'requests', 'PIL', 'captum', 'psutil'}\n"
        "    if command == '--help': heavy |= {'pydantic', 'yaml', 'typing_extensions'}\n"
        "    assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.usefixtures("weights")
def test_building_an_archive_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, torchmar.archive as a\n"
        f"a.build(pathlib.Path({str(ROOT / 'archives' / 'digits')!r}), pathlib.Path({str(tmp_path)!r}))\n"
        "heavy = {'torch', 'ts', 'numpy', 'requests', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
