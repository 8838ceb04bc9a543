"""Models and versions: registration, archives, serving configuration, startup and snapshots."""
