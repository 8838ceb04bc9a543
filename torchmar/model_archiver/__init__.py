"""torch-model-archiver's Python interface: a tool that packs from Python changes one import.

``from model_archiver.model_packaging import package_model`` becomes
``from torchmar.model_archiver.model_packaging import package_model``; so do ``model_packaging_utils``,
``model_archiver``, ``model_archiver_config`` and ``model_archiver_error``. The differences are the same as those of the
command ``torchmar-archiver``: files that would overwrite one another, and archives that no server could load,
are rejected.
"""
