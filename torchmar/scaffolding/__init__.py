"""New archives and projects: folders with a recipe that builds, a handler, a sample and a test.

`archive.py` lays down ``archives/NAME/``, `project.py` the top level around it; `inputs.py` reads from weights what a
model takes. The files are made of `templates/`.
"""

from torchmar.scaffolding.archive import Created, Kind, create
from torchmar.scaffolding.project import create_project

__all__ = ["Created", "Kind", "create", "create_project"]
