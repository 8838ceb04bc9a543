"""``torchmar-serve``: torchserve's flags, one word to change in a start script or a container's entrypoint.

The flags, their precedence and the search for a configuration are those of torchserve 0.12.0; the server is
torchmar's own. Differences: the command returns when the models are loaded, logs and key file are in the run
folder ``.torchmar`` (with a link to the key file where TorchServe has it), and flags for Java have no effect.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

import torchmar
from torchmar import properties
from torchmar.atomic import temporary_path
from torchmar.cli import addresses
from torchmar.cli.exit_codes import exit_codes
from torchmar.cli.foreground import become
from torchmar.cli.terminal import err
from torchmar.cli.terminal import lasting_out as out
from torchmar.connection import KEY_FILE, RUN_FOLDER
from torchmar.engines.builtin import Builtin
from torchmar.engines.server_records import ServerRecord, folder_of, servers
from torchmar.engines.torchserve import VERSION
from torchmar.errors import EngineError, PropertiesError
from torchmar.server.config import reader
from torchmar.server.config.keys import PATH_KEYS
from torchmar.server.config.settings import Settings
from torchmar.server.models import snapshots

_PID_FILE = ".model_server.pid"  # torchserve's file, in the temporary folder: one server for each machine
_LOAD_SECONDS = 300.0  # seconds to wait for models
_RUN_FOLDER_VARIABLE = "TORCHMAR_RUN_FOLDER"  # the same as for torchmar's commands
_IGNORED = ("log_config", "cpp_log_config", "plugins_path", "workflow_store")


def main() -> None:
    """Run the command and exit: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    options = argument_parser().parse_args()
    with exit_codes(_run_folder(options.run_folder)):
        if options.version:
            out.print(f"TorchServe Version is {VERSION} (torchmar {torchmar.__version__})")
        elif options.stop:
            stop(options.run_folder)
        else:
            start(options)


def start(options: argparse.Namespace) -> None:
    """Start a server; return when it answers. With ``--foreground`` this process becomes the server.

    Raises:
        TorchmarError: the configuration is wrong, a server is running already, or the new server did not start.
    """
    folder = _run_folder(options.run_folder)
    if process := _running(options.run_folder):
        running_folder = folder_of(process)
        raise EngineError(
            f"a server is running already (process {process.pid}{f', {running_folder}' if running_folder else ''})",
            hint="torchmar-serve --stop ends it; --run-folder FOLDER, with other ports, runs another beside it",
        )
    snapshot_folder = None if options.no_config_snapshots else _snapshot_folder(folder)
    config, overrides = _config_file(options.ts_config, snapshot_folder), _overrides(options)
    configured, warnings = reader.read(config, os.environ, **overrides)
    if config and config.parent == snapshot_folder:
        out.print(f"restoring {config}; --ncs starts without snapshots", markup=False)
    if options.models and configured.model_snapshot is not None:
        warnings = [f"--models {' '.join(options.models)} is not used: the snapshot in {config} replaces it", *warnings]
    if ignored := [f"--{name.replace('_', '-')}" for name in _IGNORED if getattr(options, name)]:
        warnings = [f"without meaning here: {', '.join(ignored)}", *warnings]
    if os.environ.get("METRICS_LOCATION"):
        warnings = ["METRICS_LOCATION has no meaning here: metrics are at metrics_address, not in files", *warnings]
    for warning in warnings:
        err.print(f"warning: {warning}", markup=False)
    values = _effective(configured, reader.texts(config, os.environ, **overrides))
    _place_logs(folder)
    if snapshot_folder:
        values["torchmar_snapshots"] = str(snapshot_folder)
    if options.foreground:
        title = f"torchmar {torchmar.__version__}, built in"
        become(values, folder, lambda record: _announce(folder, title, record, configured))
    _start_in_background(configured, values, folder)


def stop(run_folder: str | None) -> None:
    """Stop the server of a run folder; without a run folder, the server that this command started in any folder.

    Raises:
        TorchmarError: the server belongs to another user, or is TorchServe itself.
    """
    process = _running(run_folder)
    if process is None:
        out.print("TorchServe is not currently running.")
        return
    folder = folder_of(process)
    record = ServerRecord.find(folder) if folder else None
    if record is None or record.engine != "builtin":
        raise EngineError(
            f"process {process.pid} is a server that torchmar-serve did not start", hint="torchserve --stop ends it"
        )
    record.stop()
    if _read_pid() == process.pid:
        _pid_file().unlink(missing_ok=True)
    for linked in (Path.cwd(), Path(record.folder).parent):
        if (linked / KEY_FILE).is_symlink():
            (linked / KEY_FILE).unlink(missing_ok=True)
    out.print("TorchServe has stopped.")
    if Path(record.folder).resolve() != _run_folder(run_folder):
        err.print(f"it was process {process.pid} of {record.folder}", markup=False)


def _run_folder(option: str | None) -> Path:
    return Path(option or os.environ.get(_RUN_FOLDER_VARIABLE) or RUN_FOLDER).resolve()


def _place_logs(folder: Path) -> None:
    """Make ``logs`` of the run folder a link to ``LOG_LOCATION``, if that is set; TorchServe uses this variable."""
    link, location = folder / "logs", os.environ.get("LOG_LOCATION")
    if link.is_symlink():
        link.unlink()
    if location:
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(location).absolute()
        target.mkdir(parents=True, exist_ok=True)
        if target == link:
            return
        if link.is_dir():
            shutil.rmtree(link)
        link.symlink_to(target)


def _start_in_background(configured: Settings, values: Mapping[str, str], folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "config.properties")
        file.write_text(properties.show(values), encoding="utf-8")
        engine = Builtin(file, configured.model_store, folder)
    with engine as server:
        _announce(server.folder, server.described, ServerRecord.find(server.folder), configured)
        server.detach()
    _report(server)


def _report(server: Builtin) -> None:
    """Wait until the models are loaded, and print their problems; TorchServe's script returns at once."""
    with err.status("loading models"):
        report = server.wait_until_loaded(_LOAD_SECONDS)
    if report is None:
        err.print(f"warning: models are still being loaded after {_LOAD_SECONDS:.0f} s; torchmar status shows which")
        return
    for warning in report.warnings:
        err.print(f"warning: {warning}", markup=False)
    for failure in report.failures:
        err.print(f"error: {failure.message}", markup=False)
    if report.failures:
        err.print("the server runs, and /ping is Unhealthy; torchmar logs has more", markup=False)


def _announce(folder: Path, title: str, running: ServerRecord | None, configured: Settings) -> None:
    """Print the addresses of the server, and write its pid for ``--stop``."""
    if running:
        _write_pid(running.pid)
    key_file = _link_key_file(folder) if configured.tokens else None
    out.print(title, markup=False)
    for line in addresses.lines(properties.read(folder / "config.properties"), "builtin"):
        out.print(line, markup=False)
    out.print(f"  tokens      {key_file or 'none: authorization is off'}", markup=False)
    out.print(f"  logs        {folder / 'logs'}", markup=False)


def _link_key_file(folder: Path) -> Path:
    """Link to the key file in the current folder, where TorchServe has it; return the link, or else the file."""
    part = temporary_path(Path(KEY_FILE))
    try:
        part.symlink_to(os.path.relpath(folder / KEY_FILE))
        part.replace(KEY_FILE)  # TorchServe overwrites an existing file
    except OSError:  # a folder that cannot be written, as in a container
        return folder / KEY_FILE
    return Path(KEY_FILE)


def _config_file(option: str | None, snapshot_folder: Path | None) -> Path | None:
    """Return the configuration that torchserve would use; the last snapshot precedes ./config.properties."""
    if file := os.environ.get("TS_CONFIG_FILE") or option:
        if not Path(file).is_file():
            raise PropertiesError(
                f"--ts-config file not found: {file}", hint="TS_CONFIG_FILE takes the place of the flag"
            )
        return Path(file)
    if snapshot_folder and (snapshot := snapshots.latest(snapshot_folder)):
        return snapshot
    default = Path("config.properties")
    return default if default.is_file() else None


def _snapshot_folder(run_folder: Path) -> Path:
    """Return the folder of torchserve's snapshots; one in the run folder if the current folder is read-only."""
    logs = Path(os.environ.get("LOG_LOCATION") or "logs").absolute()
    writable = os.access(logs if logs.is_dir() else Path(), os.W_OK) or "LOG_LOCATION" in os.environ
    return (logs if writable else run_folder / "logs") / "config"


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    values = {
        "model_store": options.model_store or "",
        "load_models": ",".join(options.models or ()),
        "disable_token_authorization": "true" if options.token_auth else "",
        "enable_model_api": "true" if options.model_mode else "",
    }
    return {key: value for key, value in values.items() if value}


def _effective(configured: Settings, texts: Mapping[str, str]) -> dict[str, str]:
    """Return the server's configuration without the environment, with absolute paths: it starts in another folder."""
    values = {**texts, "torchmar_envvars_read": "true", "model_store": str(configured.model_store)}
    for api in ("inference", "management", "metrics"):
        values[f"{api}_address"] = str(getattr(configured, api))
    values |= {key: str(Path(values[key]).absolute()) for key in PATH_KEYS if values.get(key)}
    return values


def _running(run_folder: str | None) -> psutil.Process | None:
    """Return the server of a run folder; without a run folder, that of the pid file, or of the default folder."""
    record = ServerRecord.find(_run_folder(run_folder))
    pid = None if run_folder else _read_pid()
    processes = [process for process in servers() if process.pid == (record and record.pid) or _has_pid(process, pid)]
    return min(processes, key=lambda process: process.pid != pid, default=None)


def _has_pid(process: psutil.Process, pid: int | None) -> bool:
    """Return whether the pid file belongs to a process, and not to an earlier process with the same pid."""
    if process.pid != pid:
        return False
    with contextlib.suppress(OSError, psutil.Error):
        return bool(process.create_time() <= _pid_file().stat().st_mtime + 1)
    return False


def _read_pid() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(_pid_file().read_text(encoding="utf-8"))
    return None


def _write_pid(pid: int) -> None:
    part = temporary_path(_pid_file())
    try:
        part.write_text(str(pid), encoding="utf-8")
        part.replace(_pid_file())
    except OSError as error:  # the temporary folder is shared: the file may belong to another user
        part.unlink(missing_ok=True)
        err.print(f"warning: {_pid_file()}: {error.strerror}; --stop works in this folder only", markup=False)


def _pid_file() -> Path:
    return Path(tempfile.gettempdir(), _PID_FILE)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="torchmar-serve",
        description="Serve models as TorchServe does, with the flags of torchserve and without Java.",
        epilog="torchmar status, top and logs show the server; torchmar-serve --stop stops it.",
    )
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument(
        "-v", "--version", action="store_true", help="print the version of TorchServe whose flags these are"
    )
    actions.add_argument("--start", action="store_true", help="start the server; the default")
    actions.add_argument("--stop", action="store_true", help="stop the server")
    add = parser.add_argument
    add("--ts-config", help="a config.properties; TS_CONFIG_FILE takes its place; default: ./config.properties")
    add("--model-store", help="the folder with the archives; default: the configuration's model_store")
    add("--workflow-store", help="no effect: there are no workflows")
    add(
        "--models",
        metavar="[NAME=]ARCHIVE",
        nargs="+",
        help="models to load: file names in the model store, URLs that allowed_urls matches, or all",
    )
    add("--log-config", help="no effect: it is for Java")
    add("--cpp-log-config", help="no effect: it is for the C++ backend")
    add(
        "--run-folder",
        metavar="FOLDER",
        help="the folder for key file, logs and extracted archives; default: TORCHMAR_RUN_FOLDER, or .torchmar",
    )
    add("--foreground", action="store_true", help="run in the foreground, and print the logs")
    add(
        "--no-config-snapshots",
        "--ncs",
        action="store_true",
        help="write no snapshots of registered models to logs/config, and do not start from the last one",
    )
    add("--plugins-path", "--ppath", help="no effect: plugins are for Java")
    add("--disable-token-auth", "--dt", dest="token_auth", action="store_true", help="require no tokens")
    add("--enable-model-api", dest="model_mode", action="store_true", help="allow registering and unregistering models")
    return parser


if __name__ == "__main__":
    main()
