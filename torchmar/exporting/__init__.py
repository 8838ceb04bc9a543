"""Texts of files that run or watch a server: units, Dockerfiles, objects of Kubernetes, alerts and a dashboard."""
