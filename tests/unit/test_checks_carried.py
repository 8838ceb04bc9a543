"""torchmar.checks.carried: handlers that are carried as they are installed are not read, others are."""

from __future__ import annotations

import pytest

from torchmar import handler_names
from torchmar.archive.collecting import carried
from torchmar.checks import Composed, handler, imports
from torchmar.checks.finding import Code
from torchmar.checks.modules import Modules

PACKAGE = {name: file.read_bytes() for name, file in carried().items()}
HANDLER = "torchmar_handlers.image_classifier"


def test_reading_the_installed_handlers_would_find_nothing() -> None:
    modules = Modules(Composed(PACKAGE))
    assert modules.handlers_are_installed
    assert imports.reach(modules, HANDLER, set()) == ([], [])
    modules.handlers_are_installed = False
    for name in handler_names.carried_handlers():
        reached, findings = imports.reach(modules, f"{handler_names.CARRIED_PACKAGE}.{name}", set())
        assert len(reached) > 5
        assert findings == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"torchmar_handlers/base.py": b"import nothing_has_this\n"}, Code.MAR309),
        ({"torchmar_handlers/more.py": b"x = 1\n"}, None),
        ({"torchmar_handlers/base.py": None}, Code.MAR305),
        ({"PIL.py": b"x = 1\n"}, Code.MAR304),
        ({"numpy/__init__.py": b""}, None),
    ],
)
def test_other_handlers_and_those_that_import_from_the_archive_are_read(
    change: dict[str, bytes | None], code: Code | None
) -> None:
    members = {name: content for name, content in (PACKAGE | change).items() if content is not None}
    assert not Modules(Composed(members)).handlers_are_installed
    if code:
        assert code in {finding.code for finding in handler.check(Composed(members), HANDLER)}


def test_files_beside_the_handlers_do_not_count() -> None:
    members = PACKAGE | {"handler.py": b"from torchmar_handlers.base import BaseHandler\n", "labels.json": b"{}"}
    assert Modules(Composed(members)).handlers_are_installed
