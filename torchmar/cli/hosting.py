"""torchmar serve --platform: a server in a container, as required by the platform that runs the container."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torchmar
from torchmar import platforms, properties
from torchmar.cli import addresses
from torchmar.cli.exit_codes import exit_codes
from torchmar.cli.foreground import become
from torchmar.cli.terminal import err
from torchmar.cli.terminal import lasting_out as out
from torchmar.engines.addresses import check_free
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord
from torchmar.platforms import PlatformName
from torchmar.server.config import reader


def serve_on(
    platform: PlatformName,
    config: Path | None,
    model_store: Path | None,
    run_folder: Path,
    *,
    check: bool = True,
    ignore: Sequence[str] = (),
) -> NoReturn:
    """Replace this process with the server that a platform requires.

    The server gets the signals of the container, and also writes its log to stderr. It loads its models
    itself; health checks fail until they are ready.

    Args:
        platform: the platform.
        config: the user's configuration; None: that which the platform mounts, or else that of the working directory,
            if there is one.
        model_store: the folder with the archives; None: the configuration's, or the platform's.
        run_folder: the folder of logs and extracted archives.
        check: whether archives are checked before they are loaded.
        ignore: codes of checks to ignore, or beginnings of codes.

    An error is printed, and the exit code is 1: a variable of the platform has a wrong value, there is no model, or a
    server runs in the folder.
    """
    with exit_codes(run_folder):
        config = config or platforms.config_file(platform, os.environ)
        configuration = properties.read_or_default(config)
        if model_store:
            configuration = replace(configuration, values={**configuration.values, "model_store": str(model_store)})
        demands = platforms.demands(platform, os.environ, configuration)
        values = dict(demands.values)
        if not check:
            values["torchmar_check_archives"] = "false"
        if ignore:
            values["torchmar_ignore_checks"] = ",".join(ignore)
        store = demands.model_store or model_store or Path(configuration.get("model_store") or "model_store")
        if not store.is_dir():  # the model is elsewhere, and a server needs a folder
            store = run_folder / "model_store"
            store.mkdir(parents=True, exist_ok=True)
        server = Builtin(config, store, run_folder, overrides=values)
        server.find()
        for address in server.properties.addresses():
            check_free(address)
        effective = server.configuration()
        for warning in reader.read(None, os.environ, **effective)[1]:
            err.print(f"warning: {warning}", markup=False)

        def announce(record: ServerRecord) -> None:
            out.print(f"torchmar {torchmar.__version__}, built in", markup=False)
            for line in addresses.lines(server.properties, "builtin"):
                out.print(line, markup=False)
            for note in demands.notes:
                out.print(note, markup=False)

        become(effective, server.folder, announce)
