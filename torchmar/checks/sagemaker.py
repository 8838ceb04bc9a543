"""Findings about the script of a SageMaker package, read as `torchmar_handlers.sagemaker` imports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import IO

import yaml

from torchmar.checks import imports
from torchmar.checks.finding import Code, Content, Finding
from torchmar.checks.modules import Modules, read_member
from torchmar.handler_names import CARRIED_PACKAGE

HANDLER = f"{CARRIED_PACKAGE}.sagemaker"
_CODE = "code/"
_PROGRAM = "inference.py"


def check(content: Content, config_file: str | None, requirements: str | None) -> list[Finding]:
    """Return the problems of the script and of the modules that it imports.

    Args:
        content: the members of the archive.
        config_file: the member that is the configuration; None: there is none.
        requirements: the member that lists the packages to install; None: there is none.
    """
    program = _program(content, config_file)
    path = _SearchPath(content)
    modules = Modules(path)
    name = (program or _PROGRAM).removesuffix(".py").replace("/", ".")
    if name not in modules:
        if program is None:
            return []
        cause = f"neither {_CODE} nor the top of the archive has {program}, the program of the configuration"
        return [Finding(Code.MAR308, str(config_file), cause, "name the script in handler: {program: ...}")]
    _, findings = imports.reach(modules, name, imports.distributions(content, requirements))
    return [replace(finding, place=path.place(finding.place)) for finding in findings]


class _SearchPath:
    """The members as Python finds them: first those of ``code/``, by their names in it, then all others."""

    def __init__(self, content: Content) -> None:
        self._content = content
        inner = {name.removeprefix(_CODE): name for name in content.sizes if name.startswith(_CODE)}
        self._members = {name: name for name in content.sizes} | inner
        self.sizes: Mapping[str, int] = {name: content.sizes[member] for name, member in self._members.items()}

    def open(self, name: str) -> IO[bytes]:
        """Open a member for reading."""
        return self._content.open(self._members[name])

    def place(self, place: str) -> str:
        """Return the place of a finding in the archive."""
        name, separator, line = place.partition(":")
        return f"{self._members.get(name, name)}{separator}{line}"


def _program(content: Content, config_file: str | None) -> str | None:
    text = read_member(content, config_file, 1 << 20) if config_file and config_file in content.sizes else None
    try:
        config = yaml.safe_load(text or b"")
    except (yaml.YAMLError, ValueError, RecursionError):
        return None  # a finding about the configuration reports it
    options = config.get("handler") if isinstance(config, dict) else None
    program = options.get("program") if isinstance(options, dict) else None
    return program if isinstance(program, str) else None
