"""The exit codes of commands that are servers themselves, `torchmar-serve` and `torchmar-tfserving`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from torchmar.cli.terminal import complain
from torchmar.errors import EngineError, TorchmarError


@contextlib.contextmanager
def exit_codes(folder: Path) -> Iterator[None]:
    """Print an error and exit with 1; exit with 130 when interrupted.

    Args:
        folder: run folder, for the message if the system reports an error without a file.
    """
    try:
        yield
    except TorchmarError as error:
        complain(error)
        sys.exit(1)
    except OSError as error:
        file = error.filename or folder
        complain(
            EngineError(f"{file}: {error.strerror}", hint="--run-folder names the folder that the server writes to")
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
