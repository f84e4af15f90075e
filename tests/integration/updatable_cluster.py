"""A cluster in the foreground that is updated on command: run by ``test_rolling_update.py``.

The first argument is its settings in JSON. It says where it serves, then "updated" for each line
of changed settings on its standard input; it drains and stops at the input's end.
"""

import json
import sys

from ray import serve

from moeray.cluster.application import APPLICATION, build_application
from moeray.cluster.config import load_settings
from moeray.cluster.engine_spec import EngineSpec
from moeray.cluster.lifecycle import Cluster, running_cluster


def main() -> None:
    settings = load_settings(None, json.loads(sys.argv[1]))
    with running_cluster(settings, lambda line: None) as cluster:
        print(json.dumps({"target": cluster.target, "metrics": cluster.metrics}), flush=True)
        for line in sys.stdin:
            update(cluster, json.loads(line))
            print("updated", flush=True)
    print("stopped", flush=True)


def update(cluster: Cluster, changes: dict[str, object]) -> None:
    """Deploy the application again with changed settings, and wait until that is done."""
    spec = cluster.spec
    spec = EngineSpec.resolve(
        spec.settings.model_copy(update=changes),
        spec.model,
        gpus_per_node=0,
        cluster_token=spec.cluster_token,
        loopback=spec.loopback,
    )
    port = int(cluster.target.rpartition(":")[2])
    serve.run(build_application(spec, port), name=APPLICATION, route_prefix=None)


if __name__ == "__main__":
    main()
