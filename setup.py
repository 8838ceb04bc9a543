"""Name the two source roots: torchmar at the top, torchmar_handlers in handlers/; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["torchmar", "torchmar.*"]), *find_packages("handlers")],
    package_dir={"torchmar_handlers": "handlers/torchmar_handlers"},
)
