"""A cluster of Ray of several nodes on this machine, until stdin ends: prints its address, then ``ready``.

Arguments: what each node pretends to have, as JSON, such as ``{"num_cpus": 2}``; the first is the head. ``"hidden"`` is
a folder that a node and those after it see empty, as one of another machine, which needs the rights of root. A line on
stdin with the number of a node kills it; ``lost`` ends the head's process with the state of the cluster (GCS), and
``head`` starts it again besides, which needs a Redis (RAY_REDIS_ADDRESS).
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import psutil
from ray.cluster_utils import Cluster

_TRIES = 4
_CLONE_NEWNS = 0x20000
HERE = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 128 << 20}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def started(start):
    """Try again what does not start within the 30 seconds that Ray waits: on a busy machine, nodes take longer."""
    for _ in range(_TRIES - 1):
        before = set(psutil.Process().children())
        try:
            return start()
        except Exception as error:
            print(f"again, because of {error}", file=sys.stderr)
            for left in set(psutil.Process().children()) - before:  # it would join the cluster later
                left.kill()
    return start()


def hide(folder):
    """Let processes that are started from now on see a folder empty."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)


def main() -> None:
    head, *others = map(json.loads, sys.argv[1:])
    # Its nodes end with this process in any case, also when it is killed.
    cluster = started(
        lambda: Cluster(
            initialize_head=True,
            shutdown_at_exit=True,
            head_node_args={"dashboard_port": free_port(), **head, **HERE},
        )
    )
    nodes = [cluster.head_node]
    for other in others:
        if folder := other.pop("hidden", ""):
            hide(folder)
        nodes.append(started(lambda other=other: cluster.add_node(**{**HERE, **other})))
    try:
        cluster.wait_for_nodes()
        print(cluster.address, flush=True)
        for line in sys.stdin:
            if line.strip() in ("head", "lost"):
                cluster.head_node.kill_gcs_server(check_alive=False)
                if line.strip() == "head":
                    time.sleep(2)
                    cluster.head_node.start_gcs_server()
            else:
                cluster.remove_node(nodes[int(line)], allow_graceful=False)
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    main()
