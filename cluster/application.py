"""The Ray Serve application: gateways and engines, and the router beside them.

Serve deploys, heals, drains and scales the two deployments. Requests do not pass through its
proxies or handles: gateways have ports of their own and reach engines over ``engine.proto``.
"""

from typing import Any

import ray
from ray import serve

from moeray.cluster.config import Settings
from moeray.cluster.contracts import ROUTER_NAME, ROUTER_NAMESPACE
from moeray.cluster.engine_spec import EngineSpec
from moeray.cluster.gateway import Gateway
from moeray.cluster.gateway_process import GatewaySettings
from moeray.cluster.gateway_server import ServerOptions
from moeray.cluster.placement import PlacementLimits
from moeray.cluster.replica import EngineReplica, placement_bundles
from moeray.cluster.router import RouterActor

APPLICATION = "moeray"

_HEALTH_PERIOD_S = 1.0
_HEALTH_TIMEOUT_S = 10.0
_STOP_POLL_S = 0.2
_STOP_MARGIN_S = 15.0
"""Beyond the drain itself: for servers and ranks to let go."""
_START_TRIES = 2
_ROUTER_CALLS = 10_000
"""Long polls and calls that the router holds open at once."""


def build_application(spec: EngineSpec, port: int) -> serve.Application:
    """The application for one model, its gateways on ``port``."""
    settings = spec.settings
    stopping: dict[str, Any] = {
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        "graceful_shutdown_wait_loop_s": _STOP_POLL_S,
        "graceful_shutdown_timeout_s": settings.drain_timeout_s + _STOP_MARGIN_S,
        "max_constructor_retry_count": _START_TRIES,
    }
    engines = serve.deployment(
        name="Engine",
        num_replicas=settings.engines,
        ray_actor_options={"num_cpus": 0.1},
        placement_group_bundles=placement_bundles(spec),
        placement_group_strategy="STRICT_PACK",
        **stopping,
    )(EngineReplica)
    gateways = serve.deployment(
        name="Gateway",
        num_replicas=settings.gateways,
        ray_actor_options={"num_cpus": 0.1},
        **stopping,
    )(Gateway)
    return gateways.bind(_gateway_settings(spec, port), engines.bind(spec))


def start_router(settings: Settings) -> None:
    """Start the cluster's router; raises ValueError where the Ray cluster has one already."""
    limits = PlacementLimits(
        max_waiting=settings.max_waiting_requests,
        max_waiting_tokens=settings.max_waiting_tokens,
        no_engine_wait_s=settings.no_engine_timeout_s,
    )
    ray.remote(RouterActor).options(
        name=ROUTER_NAME,
        namespace=ROUTER_NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=_ROUTER_CALLS,
        num_cpus=0,
    ).remote(limits)


def _gateway_settings(spec: EngineSpec, port: int) -> GatewaySettings:
    settings = spec.settings
    return GatewaySettings(
        server=ServerOptions(host=settings.host, port=port, reflection=settings.reflection),
        cluster_token=spec.cluster_token,
        tokenizer_file=settings.tokenizer_file,
        # The embedded model uses the packaged vocabulary, so its folder need not be on this node.
        checkpoint=settings.model,
        no_engine_wait_s=settings.no_engine_timeout_s,
        drain_grace_s=settings.drain_timeout_s,
    )
