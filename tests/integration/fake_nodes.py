"""A Ray cluster of several nodes on this machine, for as long as standard input is open.

Run as a program: ``python fake_nodes.py NODES FREE_CPUS`` prints ``ready HOST:PORT``. The head has
no CPUs; each other node has FREE_CPUS, a fraction of one.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from moeray.cluster.config import use_ray_token

_SIZE = {"object_store_memory": 80 << 20}
_TRIES = 4
"""A node of Ray gives up where its helpers take more than 15 s to start, on a busy machine."""


@contextlib.contextmanager
def running_nodes(count: int) -> Iterator[str]:
    """Yields the cluster's address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        _add_node(cluster, num_cpus=0, include_dashboard=False)
        for _ in range(count):
            _add_node(cluster, num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


def _add_node(cluster: Any, **options: object) -> None:
    for left in reversed(range(_TRIES)):
        try:
            cluster.add_node(**options, **_SIZE)
            return
        except Exception as error:
            if not left:
                raise
            print(f"again, because a node did not start: {error}", flush=True)


def main() -> None:
    use_ray_token()  # as `ray start` does; before Ray is imported
    import ray
    from ray.util.placement_group import placement_group

    count, free_cpus = int(sys.argv[1]), float(sys.argv[2])
    with running_nodes(count) as address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        # Nodes have whole CPUs only: what is too much is reserved.
        reserved = [{"CPU": 1.0 - free_cpus}] * count
        ray.get(placement_group(reserved, strategy="STRICT_SPREAD").ready())
        print(f"ready {address}", flush=True)
        sys.stdin.read()
        ray.shutdown()


if __name__ == "__main__":
    main()
