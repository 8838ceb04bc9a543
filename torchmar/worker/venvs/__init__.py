"""Virtual environments of archives: an interpreter with the packages of a lock file, shared by all that ask for them.

::

    recipe ─locking.py─> lock file, wheels ─in the archive─> specification.py ─building.py─> folder.py: Venv

Nothing of an archive runs meanwhile: only wheels are installed, and these run nothing.
"""

from __future__ import annotations

#: The error of the process that a server starts, if an environment is not complete and must not be built.
MISSING = "missing"
