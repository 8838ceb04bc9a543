"""Weights in another format, written only if they give the same answers as their source.

::

    weights, archive or recipe --sources.py--> files and examples
      --a process: conversion/export_process.py--> the other format, and the source's answers
      --a fresh process: conversion/export_check.py--> compared, moved to its place
"""

from __future__ import annotations

from torchmar.weight_export.session import TARGETS, Export, export_weights

__all__ = ["TARGETS", "Export", "export_weights"]
