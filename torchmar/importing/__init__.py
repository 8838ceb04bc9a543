"""Packages of other tools as recipes, and their installations as a deployment."""
