"""Worker processes of a version: queue, batching, supervision and restarts."""
