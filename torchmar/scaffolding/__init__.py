"""New archives and projects: folders with a recipe that builds, a handler, a sample and a test.

`archive.py` creates ``archives/NAME/``, and `project.py` the folders around it. `inputs.py` reads the inputs of a
model from its weights. `templates/` contains the texts of the files.
"""

from torchmar.scaffolding.archive import Created, Kind, create
from torchmar.scaffolding.project import create_project

__all__ = ["Created", "Kind", "create", "create_project"]
