"""A hardened systemd unit that runs ``torchmar serve``.

The directives are those of systemd.service(5) and systemd.exec(5); ``systemd-analyze security`` rates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from torchmar.connection import local
from torchmar.engines import DEFAULT, EngineName
from torchmar.errors import TorchmarError
from torchmar.properties import Properties

_UNIT = """\
# {install}

[Unit]
Description={engine} over {store} (torchmar)
After=network.target
# After five failures in ten minutes it is not restarted; systemctl reset-failed allows a new start.
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
# The service is ready when its models are loaded.
Type=notify
NotifyAccess=main
ExecStart={command}
{reload}WorkingDirectory={folder}
{environment}Restart=on-failure
RestartSec=5
TimeoutStartSec=900
TimeoutStopSec={stop_seconds}
KillMode=mixed
# The exit code after SIGTERM, which systemctl stop sends.
SuccessExitStatus=143
LimitNOFILE=65536
UMask=0077
{user}
# It can read the file system, and write to its run folder{sockets} and its own temporary folder.
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={written}
PrivateTmp=yes
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectProc=invisible

# It cannot get more rights. (Without MemoryDenyWriteExecute, since {compilers} at run time.)
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
{system}
[Install]
WantedBy={target}
"""

# Options that only the system's manager supports.
_SYSTEM = """
AmbientCapabilities=
CapabilityBoundingSet=
# GPUs are the only devices.
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RemoveIPC=yes
"""
_LOOPBACK = """
# Only connections of this machine. Remove both lines if a handler needs others.
IPAddressDeny=any
IPAddressAllow=localhost
"""
# In a user's manager, a private file system needs a private user namespace.
_OWN_USER = """
PrivateUsers=yes
"""

_STOP_SECONDS, _STOP_SECONDS_OF_JAVA = 45, 30  # the built-in server waits half a minute for open requests


@dataclass(frozen=True, kw_only=True)
class Service:
    """A server as a service; all paths are absolute.

    Attributes:
        python: the interpreter that has torchmar.
        folder: the working directory.
        config: the server's configuration.
        model_store: the folder with the archives.
        run_folder: the folder for the token and the logs; it must exist when the service starts.
        port: the inference API's port; None: the configuration's.
        java_home: the home of Java; None: the service finds it.
        engine: the server.
        user: user of a system service; empty: it is a service of the user's own manager (``systemctl --user``).
    """

    python: Path
    folder: Path
    config: Path
    model_store: Path
    run_folder: Path
    port: int | None = None
    java_home: Path | None = None
    engine: EngineName = DEFAULT
    user: str = ""


def unit(service: Service, config: Properties) -> str:
    """Return the text of a unit.

    Args:
        service: the service.
        config: its configuration. If all its addresses are on this machine, including that of a collector of spans, and
            no archive comes from another host, the unit allows no other connections.

    Raises:
        TorchmarError: a path has a line break, or the interpreter's path has a quote; a unit cannot contain these.
        PropertiesError: an address is invalid.
    """
    builtin = service.engine != "torchserve"
    words = [
        "-m", "torchmar", "serve",
        "--config", str(service.config),
        "--model-store", str(service.model_store),
        "--run-folder", str(service.run_folder),
        *(("--port", str(service.port)) if service.port else ()),
        "--engine", service.engine,
    ]  # fmt: skip
    sockets = {Path(address.unix).parent for address in config.addresses() if address.unix} - {service.run_folder}
    is_local = _is_local(config)
    java = f"Environment={_word(f'JAVA_HOME={service.java_home}')}\n" if service.java_home and not builtin else ""
    is_user_unit = not service.user
    delay_text = config.get("torchmar_shutdown_delay").strip()
    delay = int(delay_text) if delay_text.isdigit() else 0
    return _UNIT.format(
        install=_INSTALL_OWN if is_user_unit else _INSTALL,
        store=_text(str(service.model_store)),
        # In arguments, unlike in the name of the program, a $ would start a variable.
        command=" ".join([_program(service.python), *(_word(word).replace("$", "$$") for word in words)]),
        reload="# systemctl reload: tokens and certificates are read again.\nExecReload=/bin/kill -HUP $MAINPID\n"
        if builtin
        else "",
        folder=_text(str(service.folder)),
        environment=f"Environment=PYTHONUNBUFFERED=1\n{java}",
        user=_OWN_USER if is_user_unit else f"User={_text(service.user)}\n",
        written=" ".join(_word(str(folder)) for folder in (service.run_folder, *sorted(sockets))),
        sockets=", to the folders of its sockets" if sockets else "",
        engine="A built-in server" if builtin else "TorchServe",
        stop_seconds=_STOP_SECONDS + delay if builtin else _STOP_SECONDS_OF_JAVA,
        compilers="torch compiles" if builtin else "Java and torch compile",
        system="" if is_user_unit else _SYSTEM + (_LOOPBACK if is_local else ""),
        target="default.target" if is_user_unit else "multi-user.target",
    )


_INSTALL = "/etc/systemd/system/torchmar.service: systemctl daemon-reload; systemctl enable --now torchmar"
_INSTALL_OWN = """\
~/.config/systemd/user/torchmar.service: systemctl --user daemon-reload; systemctl --user enable --now torchmar
# loginctl enable-linger lets it run while the user is not logged in."""


def _is_local(config: Properties) -> bool:
    """Return whether a configuration has no address of another machine."""
    collector = urlsplit(config.get("torchmar_otlp_endpoint")).hostname
    return (
        not config.get("allowed_urls")
        and all(address.loopback for address in config.addresses())
        and (collector is None or local.is_local(collector))
    )


def _text(value: str) -> str:
    """Return a value for a unit, with doubled percent signs: a single one would start a specifier."""
    if "\n" in value or "\r" in value:
        raise TorchmarError(f"{value!r} has a line break, which a systemd unit cannot have")
    if value.endswith("\\"):
        raise TorchmarError(f"{value!r} ends in a backslash, which continues a line of a systemd unit")
    return value.replace("%", "%%")


def _program(python: Path) -> str:
    if any(sign in str(python) for sign in "\\'\""):
        raise TorchmarError(f"systemd cannot start a program whose path has quotes or backslashes: {python}")
    return _word(str(python))


def _word(value: str) -> str:
    """Return one word of a list of words, quoted if necessary."""
    text = _text(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if any(sign in value for sign in " \t'\"\\;") else text
