"""Files by which other programs run a server: a systemd unit, a Dockerfile with its .dockerignore.

Text out; nothing is written here.
"""
