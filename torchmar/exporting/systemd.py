"""A systemd unit that runs ``torchmar serve``, and can do little else.

The directives are those of systemd.service(5) and systemd.exec(5); ``systemd-analyze security`` rates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torchmar.engines import DEFAULT, EngineName
from torchmar.errors import TorchmarError
from torchmar.properties import Properties

_UNIT = """\
# {install}

[Unit]
Description={engine} over {store} (torchmar)
After=network.target
# Five deaths in ten minutes are enough; systemctl reset-failed lets it try again.
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
# It is ready when its models are loaded.
Type=notify
NotifyAccess=main
ExecStart={command}
WorkingDirectory={folder}
{environment}Restart=on-failure
RestartSec=5
TimeoutStartSec=900
TimeoutStopSec={stop_seconds}
KillMode=mixed
# Ended by SIGTERM, as systemctl stop does.
SuccessExitStatus=143
LimitNOFILE=65536
UMask=0077
{user}
# It reads the file system, and writes into its run folder{sockets} and a temporary folder of its own.
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={written}
PrivateTmp=yes
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectProc=invisible

# No way to more rights. (MemoryDenyWriteExecute is not here: {compilers} as they run.)
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

# What only the manager of the system can do.
_SYSTEM = """
AmbientCapabilities=
CapabilityBoundingSet=
# No device but GPUs.
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RemoveIPC=yes
"""
_LOOPBACK = """
# It speaks with this machine only. Take both lines out if a handler asks others.
IPAddressDeny=any
IPAddressAllow=localhost
"""
# In a user's manager a file system of one's own takes a user namespace of one's own.
_OWN_USER = """
PrivateUsers=yes
"""

_STOP_SECONDS, _STOP_SECONDS_OF_JAVA = 45, 30  # the built-in server gives requests that are there half a minute


@dataclass(frozen=True)
class Service:
    """A server as a service; all paths are absolute.

    Attributes:
        python: the interpreter that has torchmar.
        folder: the working directory.
        config: the server's configuration.
        model_store: the folder with the archives.
        run_folder: where the token and the logs go; it must be there when the service starts.
        port: of the inference API; None is the configuration's.
        java_home: the Java to use; None is what is found.
        engine: what serves.
        user: whose service of the system it is; empty is a service of a user's own manager (``systemctl --user``).
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
        service: what is to run.
        config: the configuration that it runs with: does it let other machines in, or archives come from them?

    Raises:
        TorchmarError: a path has a line break, or the interpreter's a quote, which no unit can hold.
        PropertiesError: an address is none.
    """
    builtin = service.engine == "builtin"
    words = [
        "-m", "torchmar", "serve",
        "--config", str(service.config),
        "--model-store", str(service.model_store),
        "--run-folder", str(service.run_folder),
        *(("--port", str(service.port)) if service.port else ()),
        "--engine", service.engine,
    ]  # fmt: skip
    sockets = {Path(address.unix).parent for address in config.addresses() if address.unix} - {service.run_folder}
    stays_here = not config.get("allowed_urls") and all(address.loopback for address in config.addresses())
    java = f"Environment={_word(f'JAVA_HOME={service.java_home}')}\n" if service.java_home and not builtin else ""
    own = not service.user
    return _UNIT.format(
        install=_INSTALL_OWN if own else _INSTALL,
        store=_text(str(service.model_store)),
        # In arguments a $ would start a variable; in the name of the program it does not.
        command=" ".join([_program(service.python), *(_word(word).replace("$", "$$") for word in words)]),
        folder=_text(str(service.folder)),
        environment=f"Environment=PYTHONUNBUFFERED=1\n{java}",
        user=_OWN_USER if own else f"User={_text(service.user)}\n",
        written=" ".join(_word(str(folder)) for folder in (service.run_folder, *sorted(sockets))),
        sockets=", where its sockets are" if sockets else "",
        engine="A built-in server" if builtin else "TorchServe",
        stop_seconds=_STOP_SECONDS if builtin else _STOP_SECONDS_OF_JAVA,
        compilers="torch compiles" if builtin else "Java and torch compile",
        system="" if own else _SYSTEM + (_LOOPBACK if stays_here else ""),
        target="default.target" if own else "multi-user.target",
    )


_INSTALL = "/etc/systemd/system/torchmar.service: systemctl daemon-reload; systemctl enable --now torchmar"
_INSTALL_OWN = """\
~/.config/systemd/user/torchmar.service: systemctl --user daemon-reload; systemctl --user enable --now torchmar
# loginctl enable-linger lets it run while nobody is logged in."""


def _text(value: str) -> str:
    """Return a value as a unit holds it: a percent sign is doubled, or it would start a specifier."""
    if "\n" in value or "\r" in value:
        raise TorchmarError(f"{value!r} has a line break, which no systemd unit can hold")
    return value.replace("%", "%%")


def _program(python: Path) -> str:
    if any(sign in str(python) for sign in "\\'\""):
        raise TorchmarError(f"systemd starts no program whose path has quotes or backslashes: {python}")
    return _word(str(python))


def _word(value: str) -> str:
    """Return one word of a list of words, quoted if it must be."""
    text = _text(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if any(sign in value for sign in " \t'\"\\;") else text
