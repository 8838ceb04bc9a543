"""Map the import name of the handlers to their folder; all else is in pyproject.toml."""

from setuptools import find_packages, setup

handlers = ["torchmar_handlers", *(f"torchmar_handlers.{name}" for name in find_packages("handlers"))]

setup(
    packages=[*find_packages(include=["torchmar", "torchmar.*"]), *handlers],
    package_dir={"torchmar_handlers": "handlers"},
)
