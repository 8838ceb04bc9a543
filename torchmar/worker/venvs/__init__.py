"""Virtual environments of archives: an interpreter with the packages of a lock file, shared by all archives with it.

::

    recipe ─locking.py─> lock file, wheels ─in the archive─> specification.py ─building.py─> folder.py: Venv

No code of an archive runs in the process: only wheels are installed, which run no code.
"""

from __future__ import annotations

#: The error of the process that a server starts, if an environment is incomplete and must not be built.
MISSING = "missing"
