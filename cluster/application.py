"""The Ray Serve application: gateways and engines, and the router beside them.

Serve deploys, heals, drains and scales the two deployments. Requests do not pass through its
proxies or handles: gateways have ports of their own and reach engines over ``engine.proto``.
"""

import warnings
from dataclasses import asdict
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from moeray.cluster.autoscaling import EngineAutoscaler
from moeray.cluster.config import Settings
from moeray.cluster.contracts import ROUTER_NAME, ROUTER_NAMESPACE
from moeray.cluster.engine_spec import EngineSpec
from moeray.cluster.gateway import Gateway
from moeray.cluster.gateway_process import GatewaySettings
from moeray.cluster.gateway_server import ServerOptions
from moeray.cluster.metrics_server import MetricsOptions
from moeray.cluster.placement import PlacementLimits
from moeray.cluster.replica import EngineReplica, configured_model
from moeray.cluster.router_process import RouterProcess, RouterProcessOptions

APPLICATION = "moeray"

_HEALTH_PERIOD_S = 1.0
_HEALTH_TIMEOUT_S = 2.0
"""Serve replaces a replica that fails three checks in a row: one that stands still is replaced
after about seven seconds, one that is late now and then never."""
_STOP_POLL_S = 0.2
_STOP_MARGIN_S = 15.0
"""Beyond the drain itself: for servers and ranks to let go."""
_START_TRIES = 2
_REPORT_S = 0.5
"""How often engines, and gateways that wait for one, report to Serve's controller."""
_WAKE_WINDOW_S = 2.0
"""How long Serve counts a wake call after its end."""
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
        **_engine_count(spec),
        ray_actor_options={"num_cpus": 0.1},
        placement_group_bundles=spec.placement_bundles,
        placement_group_strategy="STRICT_PACK",
        max_surge_percent=settings.engine_surge_percent,
        **stopping,
    )(EngineReplica)
    gateways = serve.deployment(
        name="Gateway",
        num_replicas=settings.gateways,
        ray_actor_options={"num_cpus": 0.1},
        # A new gateway listens on the shared port before an old one stops.
        max_surge_percent=100,
        **stopping,
    )(Gateway)
    return gateways.bind(_gateway_settings(spec, port), engines.bind(spec))


def start_router(settings: Settings, *, loopback: bool = False) -> None:
    """Start the cluster's router; raises ValueError where the Ray cluster has one already."""
    limits = PlacementLimits(
        max_waiting=settings.max_waiting_requests,
        max_waiting_tokens=settings.max_waiting_tokens,
        no_engine_wait_s=settings.no_engine_timeout_s,
    )
    options = RouterProcessOptions(
        log_level=settings.log_level, metrics=MetricsOptions.of(settings), loopback=loopback
    )
    ray.remote(RouterProcess).options(
        name=ROUTER_NAME,
        namespace=ROUTER_NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=_ROUTER_CALLS,
        num_cpus=0,
    ).remote(limits, options)


def _gateway_settings(spec: EngineSpec, port: int) -> GatewaySettings:
    settings = spec.settings
    return GatewaySettings(
        server=ServerOptions(host=settings.host, port=port, reflection=settings.reflection),
        cluster_token=spec.cluster_token,
        tokenizer_file=settings.tokenizer_file,
        # The embedded model uses the packaged vocabulary, so its folder need not be on this node.
        checkpoint=settings.model,
        no_engine_wait_s=settings.no_engine_timeout_s,
        flush_s=settings.flush_ms / 1e3,
        drain_grace_s=settings.drain_timeout_s,
        metrics=MetricsOptions.of(settings),
        log_level=settings.log_level,
        model=configured_model(spec),
        wakes_engines=spec.autoscaling is not None and spec.autoscaling.min_engines == 0,
    )


def _engine_count(spec: EngineSpec) -> dict[str, Any]:
    """Serve's options for the number of engines: fixed, or by our policy and none of Serve's."""
    rules = spec.autoscaling
    if rules is None:
        return {"num_replicas": spec.settings.engines}
    with warnings.catch_warnings():
        # The environment variables that the warning names have no effect in Ray 2.60; this has.
        warnings.simplefilter("ignore", DeprecationWarning)
        config = AutoscalingConfig(
            min_replicas=rules.min_engines,
            max_replicas=rules.max_engines,
            metrics_interval_s=_REPORT_S,
            look_back_period_s=_WAKE_WINDOW_S,
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            downscale_to_zero_delay_s=0.0,
            policy=AutoscalingPolicy(
                policy_function=f"{EngineAutoscaler.__module__}:{EngineAutoscaler.__name__}",
                policy_kwargs=asdict(rules),
            ),
        )
    return {"autoscaling_config": config}
