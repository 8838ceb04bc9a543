"""Map the import name of the handlers to their folder; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["torchmar", "torchmar.*"]), "torchmar_handlers"],
    package_dir={"torchmar_handlers": "handlers"},
)
