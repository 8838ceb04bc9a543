"""A cluster of Ray of several nodes on this machine, until stdin ends: prints its address, then ``ready``.

Arguments: what each node pretends to have, as JSON, such as ``{"num_cpus": 2}``; the first is the head. A line on stdin
with the number of a node kills it; ``head`` ends the head's process with the state of the cluster (GCS) and starts it
again, which needs a Redis (RAY_REDIS_ADDRESS).
"""

import json
import os
import signal
import socket
import sys
import time

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

HERE = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 128 << 20}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    head, *others = map(json.loads, sys.argv[1:])
    # Its nodes end with this process in any case, also when it is killed.
    cluster = Cluster(
        initialize_head=True,
        shutdown_at_exit=True,
        head_node_args={"dashboard_port": free_port(), **head, **HERE},
    )
    nodes = [cluster.head_node, *(cluster.add_node(**other, **HERE) for other in others)]
    try:
        cluster.wait_for_nodes()
        print(cluster.address, flush=True)
        for line in sys.stdin:
            if line.strip() == "head":
                cluster.head_node.kill_gcs_server(check_alive=False)
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
