"""What KubeRay's RayService imports (``import_path: moeray.cluster.rayservice:build``).

Serve calls ``build`` inside the Ray cluster at every change of serveConfigV2. Deployments that come
out as they were are left alone, so nothing here may differ from one call to the next: the cluster's
token is a setting, and what would be looked up in a running cluster must be given.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from ray import serve

from moeray.cluster.application import build_application, start_router
from moeray.cluster.config import Settings, SettingsError, load_settings
from moeray.cluster.engine_spec import EngineSpec
from moeray.cluster.lifecycle import prepare_in_cluster


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application for settings by name (cluster/config.py), which environment variables may add
    to. Starts the cluster's router where there is none yet.

    Raises SettingsError, and ModelRefused for a checkpoint that cannot be served.
    """
    settings = load_settings(None, args)
    spec = _spec(settings)
    with contextlib.suppress(ValueError):  # it is there already, with requests
        start_router(settings)
    return build_application(spec, settings.port)


def _spec(settings: Settings) -> EngineSpec:
    if settings.cluster_token is None:
        raise SettingsError("cluster_token: set it, from a secret as MOERAY_CLUSTER_TOKEN")
    if settings.device == "auto" or settings.ranks is None:
        raise SettingsError("device and ranks: set both; nodes may join after the deployment")
    if settings.port == 0:
        raise SettingsError("port: clients need to know it, so it cannot be 0")
    return EngineSpec.resolve(
        settings,
        prepare_in_cluster(settings),
        gpus_per_node=settings.ranks if settings.device == "cuda" else 0,
        cluster_token=settings.cluster_token.get_secret_value().encode(),
        loopback=False,
    )
