"""``torchmar-serve``: torchserve's flags, one word to change in a start script or a container's entrypoint.

The flags, what goes before what, and where a configuration is looked for are those of torchserve 0.12.0; the server is
torchmar's own. What differs: the command returns when the server answers, its logs and its key file are in the run
folder ``.torchmar`` (the key file is linked from where it was), and the flags of Java mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

import torchmar
from torchmar import properties
from torchmar.cli.terminal import complain, err, out
from torchmar.connection import KEY_FILE, RUN_FOLDER
from torchmar.engines.builtin import Builtin
from torchmar.engines.running import MODULE, Running, folder_of, servers
from torchmar.engines.torchserve import VERSION
from torchmar.errors import EngineError, PropertiesError, TorchmarError
from torchmar.replacing import beside
from torchmar.server import settings
from torchmar.server.settings import Settings

_PID_FILE = ".model_server.pid"  # torchserve's, in the folder for temporary files: one server for a machine
_PATHS = ("certificate_file", "metrics_config", "private_key_file", *properties.TOKEN_FILES)
_IDLE = ("log_config", "cpp_log_config", "plugins_path", "workflow_store")


def main() -> None:
    """Run the command and exit: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args()
    try:
        if options.version:
            out.print(f"TorchServe Version is {VERSION} (torchmar {torchmar.__version__})")
        elif options.stop:
            stop()
        else:
            start(options)
    except TorchmarError as error:
        complain(error)
        sys.exit(1)
    except OSError as error:
        complain(EngineError(f"{error.filename or RUN_FOLDER}: {error.strerror}"))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def start(options: argparse.Namespace) -> None:
    """Start a server; return when it answers, or become it with ``--foreground``.

    Raises:
        TorchmarError: the configuration is wrong, a server runs already, or this one did not start.
    """
    if found := _running():
        raise EngineError(f"a server is running already (process {found.pid})", hint="torchmar-serve --stop ends it")
    config, given = _config_file(options.ts_config), _overrides(options)
    configured, warnings = settings.read(config, os.environ, **given)
    if idle := [f"--{name.replace('_', '-')}" for name in _IDLE if getattr(options, name)]:
        warnings = [f"without meaning here: {', '.join(idle)}", *warnings]
    for warning in warnings:
        err.print(f"warning: {warning}", markup=False)
    values = _effective(configured, settings.texts(config, os.environ, **given))
    if options.foreground:
        _become(configured, values)
    _start_in_background(configured, values)


def stop() -> None:
    """Stop the server that this command has started, wherever that was.

    Raises:
        TorchmarError: it is another user's, or the real TorchServe.
    """
    process = _running()
    if process is None:
        out.print("TorchServe is not currently running.")
        return
    folder = folder_of(process)
    running = Running.find(folder) if folder else None
    if running is None or running.engine != "builtin":
        raise EngineError(
            f"process {process.pid} is a server that torchmar-serve did not start", hint="torchserve --stop ends it"
        )
    running.stop()
    _pid_file().unlink(missing_ok=True)
    for place in (Path.cwd(), Path(running.folder).parent):
        if (place / KEY_FILE).is_symlink():
            (place / KEY_FILE).unlink(missing_ok=True)
    out.print("TorchServe has stopped.")


def _start_in_background(configured: Settings, values: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.properties")
        file.write_text(properties.show(values), encoding="utf-8")
        engine = Builtin(file, configured.model_store, RUN_FOLDER)
    with engine as server:
        _tell(server.folder, server.described, Running.find(server.folder), configured)
        server.detach()


def _become(configured: Settings, values: Mapping[str, str]) -> None:
    """Run the server in place of this process, so that signals reach it; what it prints goes where this prints."""
    folder = RUN_FOLDER.resolve()
    if running := Running.find(folder):
        raise EngineError(f"a server runs in {folder} already (process {running.pid})", hint="torchmar stop ends it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEY_FILE).unlink(missing_ok=True)
    temporary = folder / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    file = folder / "config.properties"
    file.write_text(properties.show(values), encoding="utf-8")
    running = Running.of(os.getpid(), folder, temporary, "builtin")
    running.save()
    _tell(folder, f"torchmar {torchmar.__version__}, built in", running, configured)
    sys.stdout.flush()
    os.chdir(folder)
    os.execve(
        sys.executable,
        [sys.executable, "-m", MODULE, "-f", str(file), "--foreground"],
        {**os.environ, "TMPDIR": str(temporary)},
    )


def _tell(folder: Path, what: str, running: Running | None, configured: Settings) -> None:
    """Say where the server is, for people and for ``--stop``."""
    if running:
        _note(running.pid)
    if configured.tokens:
        link = beside(Path(KEY_FILE))
        link.symlink_to(os.path.relpath(folder / KEY_FILE))
        link.replace(KEY_FILE)  # TorchServe writes over one that is there
    out.print(what, markup=False)
    out.print(f"  inference   {configured.inference}", markup=False)
    out.print(f"  management  {configured.management}", markup=False)
    out.print(f"  tokens      {KEY_FILE if configured.tokens else 'none: authorization is off'}", markup=False)
    out.print(f"  logs        {folder / 'logs'}", markup=False)


def _config_file(given: str | None) -> Path | None:
    """Return the configuration that torchserve would take, but for snapshots, which there are none of."""
    if named := os.environ.get("TS_CONFIG_FILE") or given:
        if not Path(named).is_file():
            raise PropertiesError(f"--ts-config file not found: {named}", hint="TS_CONFIG_FILE goes before the flag")
        return Path(named)
    here = Path("config.properties")
    return here if here.is_file() else None


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    given = {
        "model_store": options.model_store or "",
        "load_models": ",".join(options.models or ()),
        "disable_token_authorization": "true" if options.token_auth else "",
        "enable_model_api": "true" if options.model_mode else "",
    }
    return {key: value for key, value in given.items() if value}


def _effective(configured: Settings, texts: Mapping[str, str]) -> dict[str, str]:
    """Return what the server is given, which starts in another folder and has read the environment by then."""
    values = {**texts, "enable_envvars_config": "false", "model_store": str(configured.model_store)}
    for api in ("inference", "management", "metrics"):
        values[f"{api}_address"] = str(getattr(configured, api))
    values |= {key: str(Path(values[key]).absolute()) for key in _PATHS if values.get(key)}
    return values


def _running() -> psutil.Process | None:
    """Return the server that the pid file names, or else that of this folder; None if there is none any more."""
    pid = None
    with contextlib.suppress(OSError, ValueError):
        pid = int(_pid_file().read_text(encoding="utf-8"))
    here = Running.find(RUN_FOLDER)
    found = [process for process in servers() if process.pid in (pid, here and here.pid)]
    return min(found, key=lambda process: process.pid != pid, default=None)


def _note(pid: int) -> None:
    part = beside(_pid_file())
    try:
        part.write_text(str(pid), encoding="utf-8")
        part.replace(_pid_file())
    except OSError as error:  # in a folder for all, it may be somebody else's
        part.unlink(missing_ok=True)
        err.print(f"warning: {_pid_file()}: {error.strerror}; --stop works in this folder only", markup=False)


def _pid_file() -> Path:
    return Path(tempfile.gettempdir(), _PID_FILE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchmar-serve",
        description="Serve models as TorchServe does, with the flags of torchserve and without Java.",
        epilog="torchmar status, top and logs look at the server; torchmar-serve --stop ends it.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-v", "--version", action="store_true", help="print the version of TorchServe that this is like")
    what.add_argument("--start", action="store_true", help="start the server, which is what no flag does, too")
    what.add_argument("--stop", action="store_true", help="stop it")
    add = parser.add_argument
    add("--ts-config", help="a config.properties; TS_CONFIG_FILE goes before it, and ./config.properties after")
    add("--model-store", help="the folder with the archives; default: the configuration's model_store")
    add("--workflow-store", help="nothing: there are no workflows here")
    add(
        "--models",
        metavar="[NAME=]ARCHIVE",
        nargs="+",
        help="what to load: file names in the model store, URLs that allowed_urls matches, or all",
    )
    add("--log-config", help="nothing: it is for Java")
    add("--cpp-log-config", help="nothing: it is for the C++ backend")
    add("--foreground", action="store_true", help="stay, in place of running in the background, and print the logs")
    add("--no-config-snapshots", "--ncs", action="store_true", help="what is so in any case: no snapshots are written")
    add("--plugins-path", "--ppath", help="nothing: plugins are for Java")
    add("--disable-token-auth", "--dt", dest="token_auth", action="store_true", help="want no tokens")
    add("--enable-model-api", dest="model_mode", action="store_true", help="let models be registered and unregistered")
    return parser


if __name__ == "__main__":
    main()
