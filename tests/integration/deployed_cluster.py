"""Deploys a serveConfigV2 as KubeRay has Serve do it: run by ``test_rayservice_deployment.py``.

Each line of standard input is a configuration in JSON; it says ``ANSWER {"problem": ...}`` once
Serve runs it, with Serve's words where it does not. It stops at the end of the input.
"""

import json
import sys
import time

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from moeray.cluster.contracts import ROUTER_NAMESPACE

ANSWER = "ANSWER "
"""Ray writes to standard output too."""
_SETTLED = (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOY_FAILED)


def main() -> None:
    ray.init(
        address="local",
        num_cpus=2,
        namespace=ROUTER_NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 << 20,
    )
    try:
        serve.start(proxy_location="Disabled")
        for line in sys.stdin:
            answer = {"problem": deploy(json.loads(line))}
            print(f"{ANSWER}{json.dumps(answer)}", flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(config: dict[str, object]) -> str:
    """Why it does not run; empty where it does."""
    schema = ServeDeploySchema.model_validate(config)
    _get_global_client().deploy_apps(schema, _blocking=False)
    (application,) = schema.applications
    while True:
        time.sleep(0.2)
        found = serve.status().applications.get(application.name)
        if found is not None and found.status in _SETTLED:
            return "" if found.status is ApplicationStatus.RUNNING else found.message


if __name__ == "__main__":
    main()
