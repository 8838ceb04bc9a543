"""The text of a configuration, merged from a file, environment variables and a command line, with the origin of values.

The order of precedence is TorchServe's, as observed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmar import properties
from torchmar.errors import PropertiesError
from torchmar.server.config.keys import VARIABLES, ConfigKey
from torchmar.server.config.values import flag

_VARIABLE = re.compile(r"\$\$([^$]+[^$])\$\$")


class ConfigText:
    """Values as text, with their origins; problems are collected and raised together.

    Args:
        file: a ``config.properties``; None: there is none.
        environment: environment variables, for ``$$NAME$$`` in values and for keys.
        overrides: keys from the command line.

    Attributes:
        file: the configuration file.
        values: values by key, without overridden ones.
        warnings: warnings for the user.
    """

    def __init__(self, file: Path | None, environment: Mapping[str, str], overrides: Mapping[str, str]) -> None:
        self.file = file
        self.values: dict[str, str] = {}
        self.warnings: list[str] = []
        self._problems: list[tuple[str, str]] = []  # each with a hint
        self._origins: dict[str, str] = {}
        for key, text in (properties.read(file).values if file else {}).items():
            self._set(key, self._interpolate(key, text, environment), f"{file}: {key}")
        for key, text in overrides.items():
            self._set(key, text, key)
        self._read_environment(environment)

    def text(self, key: str) -> str:
        """Return a value without surrounding spaces; empty if the key is not set."""
        return self.values.get(key, "").strip()

    def flag(self, key: str) -> bool:
        """Return whether a value is ``true``."""
        return self.text(key).lower() == "true"

    def read(self, key: str, config_key: ConfigKey) -> Any:
        """Return a value with its key's type; None if it is invalid, which is recorded as a problem."""
        text = self.text(key)
        if config_key.read is flag and text.lower() not in ("true", "false"):
            self.warnings.append(f"{self.origin(key)}: false, as for TorchServe; write {key}=true or {key}=false")
        try:
            return config_key.read(text)
        except ValueError as error:
            self.problem(f"{self.origin(key)}: {error}", f"write it like {key}={config_key.example}")
            return None

    def origin(self, key: str) -> str:
        """Return the origin of a value, with its text."""
        return f"{self._origins.get(key, key)}={self.text(key)}"

    def problem(self, message: str, hint: str) -> None:
        """Record a problem."""
        self._problems.append((message, hint))

    def raise_problems(self) -> None:
        """Raise PropertiesError with all problems, if there are any."""
        if len(self._problems) == 1:
            raise PropertiesError(self._problems[0][0], hint=self._problems[0][1])
        if self._problems:
            raise PropertiesError("\n".join(f"{message} ({hint})" for message, hint in self._problems))

    def _set(self, key: str, text: str, origin: str) -> None:
        self.values[key], self._origins[key] = text, origin

    def _interpolate(self, key: str, text: str, environment: Mapping[str, str]) -> str:
        def value(match: re.Match[str]) -> str:
            if (name := match[1]) not in environment:
                self.problem(f"{self.file}: {key}={text}: there is no variable {name}", f"export {name}=...")
            return environment.get(name, "")

        return _VARIABLE.sub(value, text)

    def _read_environment(self, environment: Mapping[str, str]) -> None:
        present = {name: key for name, key in VARIABLES.items() if name in environment}
        if not self.flag("use_env_allowed_urls"):
            present.pop("TS_ALLOWED_URLS", None)
        if self.flag("torchmar_envvars_read"):
            return  # torchmar-serve has already written the variables' values to the file
        if self.flag("enable_envvars_config"):
            for name, key in present.items():
                self._set(key, environment[name], name)
        elif present:
            names = ", ".join(sorted(present))
            self.warnings.append(
                f"{names}: without effect, as for TorchServe; enable_envvars_config=true has them read"
            )
