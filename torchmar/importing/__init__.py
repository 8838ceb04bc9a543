"""Packages of other tools as recipes, and installations of TorchServe as deployments."""
