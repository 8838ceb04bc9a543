"""Findings about ``MAR-INF/MANIFEST.json``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torchmar import manifest
from torchmar.checks.finding import Code, Content, Finding
from torchmar.checks.json_keys import repeated_keys
from torchmar.checks.weights import is_known
from torchmar.errors import ManifestError
from torchmar.recipe import VERSION_PATTERN

RUNTIMES = ("python", "python3", "LSP")
_NAMES_OF_RUNTIMES = ("PYTHON", "PYTHON3")  # other names of a runtime that the frontend takes, too
_MAX = 1 << 20  # bytes; the server reads the whole manifest
_AGAIN = "build the archive again with torchmar build or torchmar-archiver"


def read(content: Content) -> tuple[manifest.Manifest | None, list[Finding]]:
    """Return the manifest, if it can be used, and its problems."""
    size = content.sizes.get(manifest.PATH)
    if size is None:
        cause = "TorchServe registers an archive without a manifest only where the call names model and handler"
        return None, [Finding(Code.MAR201, manifest.PATH, cause, _AGAIN)]
    if size > _MAX:
        return None, [Finding(Code.MAR202, manifest.PATH, f"it has {size} bytes", _AGAIN)]
    with content.open(manifest.PATH) as stream:
        text = stream.read()
    try:
        parsed = manifest.parse(text)
    except ManifestError as error:
        cause = error.message.removeprefix(f"{manifest.PATH}").lstrip(": ")
        is_name = "modelName: String should match" in cause
        return None, [Finding(Code.MAR203 if is_name else Code.MAR202, manifest.PATH, cause, _AGAIN)]
    repeated = [
        Finding(Code.MAR208, manifest.PATH, f"{key} is given twice; every reader keeps the last", "leave one")
        for key in repeated_keys(text)
    ]
    return parsed, [*_findings(parsed, content), *repeated]


def _findings(parsed: manifest.Manifest, content: Content) -> Iterator[Finding]:
    model, place = parsed.model, manifest.PATH
    if model.model_version is None:
        cause = "TorchServe registers it as version 1.0"
        yield Finding(Code.MAR205, place, cause, 'give the model a version: version: "1.0" in the recipe')
    elif not re.fullmatch(VERSION_PATTERN, model.model_version):
        cause = f"the version is {model.model_version!r}"
        yield Finding(Code.MAR203, place, cause, "letters, digits, '.', '_', '-' and '+', a letter or digit first")
    if parsed.runtime not in (*RUNTIMES, *_NAMES_OF_RUNTIMES):
        cause = f"the runtime is {parsed.runtime!r}; TorchServe knows {', '.join(RUNTIMES)}"
        yield Finding(Code.MAR206, place, cause, "set it to python")
    # Only the files that the worker itself reads; the weights and the model file are the handler's.
    fatal = {"config_file"} | ({"serialized_file", "model_file"} if is_known(model.handler, content) else set())
    for key in ("serialized_file", "model_file", "requirements_file", "config_file"):
        name = getattr(model, key)
        if name and name not in content.sizes:
            nested = [member for member in content.sizes if member.endswith(f"/{name}")]
            remedy = f"move {nested[0]} to the top" if nested else "add it, or drop the key"
            cause = f"{key.replace('_', ' ')} is {name!r}, which is not in the archive"
            if key == "requirements_file":
                cause += "; a server with install_py_dep_per_model refuses the registration"
            yield Finding(Code.MAR204, place, cause, remedy, works=key not in fatal)
