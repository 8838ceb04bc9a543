"""No network and no statistics in the processes that make and run variants."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

_NEW_USERS, _NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET of <sched.h>

#: Packages that send statistics when they are imported, or when the packages that require them are used.
_SENDERS = ("openvino_telemetry",)


def forbid_statistics() -> None:
    """Keep ONNX Runtime, OpenVINO and NNCF from sending statistics, and Hugging Face's packages from downloading."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in _SENDERS:
        # None is what Python has for a module that must not be imported.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def leave_network() -> bool:
    """Move this process into a network namespace without interfaces, where the system allows that.

    Call it before the first thread is started: only then may a process without privileges do so.

    Returns:
        Whether it is there.
    """
    if sys.platform != "linux":
        return False
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK) == 0:
        return True
    if libc.unshare(_NEW_USERS | _NEW_NETWORK) != 0:
        return False
    with contextlib.suppress(OSError):  # without them, files belong to no user, and can be read all the same
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True
