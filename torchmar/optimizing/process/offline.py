"""Processes that make and run variants: no network, and no statistics to vendors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

_NEW_USERS, _NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET of <sched.h>

#: Packages that send statistics when they, or packages that require them, are imported or used.
_SENDERS = ("openvino_telemetry",)


def forbid_statistics() -> None:
    """Stop ONNX Runtime, OpenVINO and NNCF from sending statistics, and Hugging Face's packages from downloading."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in _SENDERS:
        # In sys.modules, None stands for a module that must not be imported.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def leave_network() -> bool:
    """Move this process into a network namespace without interfaces, if the system allows it.

    Call it before the first thread is started: a process without privileges can only move then.

    Returns:
        Whether the process was moved.
    """
    if sys.platform != "linux":
        return False
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK) == 0:
        return True
    if libc.unshare(_NEW_USERS | _NEW_NETWORK) != 0:
        return False
    with contextlib.suppress(OSError):  # without the mapping of ids, files have no owner, but can still be read
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True
