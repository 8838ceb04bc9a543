"""Texts of files that run a server: a systemd unit, and a Dockerfile with its .dockerignore."""
