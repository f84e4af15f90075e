"""A cluster's life as one context: start or join Ray, deploy, wait until it serves, drain, stop.

``moeray serve``, ``moeray demo`` and the tests all run a cluster through ``running_cluster``.
Whatever happens inside, what was started here is stopped at the end, and nothing else is.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve

from moeray.cluster.application import APPLICATION, build_application, start_router
from moeray.cluster.client import Client
from moeray.cluster.config import Settings, ray_address
from moeray.cluster.contracts import ROUTER_NAME, ROUTER_NAMESPACE
from moeray.cluster.engine_spec import EngineSpec, ModelFacts
from moeray.cluster.port_lock import hold_port, host_port
from moeray.cluster.replica import ModelRefused, prepare_model
from moeray.vocabulary.cluster_token import mint_token

_LOCAL_OBJECT_STORE_BYTES = 128 << 20
_POLL_S = 0.1
_CONNECT_TIMEOUT_S = 5.0

Progress = Callable[[str], None]


class StartError(RuntimeError):
    """The cluster cannot start; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster that serves. ``target`` is where clients on this machine connect."""

    target: str
    metrics: str
    """HOST:PORT of the router's metrics, which list everybody's; empty where none are served."""
    spec: EngineSpec


@contextmanager
def running_cluster(settings: Settings, progress: Progress) -> Iterator[Cluster]:
    """Run a cluster until the context ends; ``progress`` hears what happens, line by line.

    Raises StartError or PortTaken; then nothing is left behind.
    """
    with ExitStack() as stack:
        port = stack.enter_context(hold_port(settings.host, settings.port))
        joined = ray_address()
        # Without a cluster to join, a bad checkpoint is refused before anything is started.
        model = None if joined else _checked_model(settings, prepare_model)
        progress(f"joining Ray at {joined}" if joined else "starting Ray")
        stack.enter_context(_joined_ray(joined) if joined else _local_ray())
        model = model or _checked_model(settings, prepare_in_cluster)
        spec = _resolve(settings, model, loopback=joined is None)
        progress(f"loading {model.name}: {spec.ranks} ranks on {spec.device}, {spec.dtype}")
        target = host_port(_reachable(settings.host), port)
        stack.enter_context(_deployed(spec, port))
        _wait_until_serving(target, settings.start_timeout_s)
        try:
            yield Cluster(target=target, metrics=_metrics_address(), spec=spec)
        finally:
            progress(f"draining: running answers have {settings.drain_timeout_s:g} s")


def stop_cluster(address: str) -> bool:
    """Stop the cluster that runs on the Ray cluster at ``address``. False: there was none."""
    with _joined_ray(address):
        found = _router_exists()
        _undeploy()
        return found


def _checked_model(settings: Settings, prepare: Callable[[Settings], ModelFacts]) -> ModelFacts:
    try:
        return prepare(settings)
    except ModelRefused as error:
        raise StartError(str(error)) from None


def prepare_in_cluster(settings: Settings) -> ModelFacts:
    """The same on a node of the joined cluster, whose disk may differ from this machine's."""
    task = ray.remote(prepare_model).options(num_cpus=0.1, max_retries=0)
    try:
        facts: ModelFacts = ray.get(task.remote(settings))
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None
    return facts


def _resolve(settings: Settings, model: ModelFacts, *, loopback: bool) -> EngineSpec:
    gpus = max(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])
    try:
        return EngineSpec.resolve(
            settings, model, gpus_per_node=gpus, cluster_token=mint_token(), loopback=loopback
        )
    except ValueError as error:
        raise StartError(str(error)) from None


@contextmanager
def _local_ray() -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's default makes its workers give way to every other process of the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A replica that stands still cannot stop gracefully: Serve would wait for it, and what it holds
    # (GPUs, its ranks) would be held as long.
    os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")
    _init_ray(
        address="local",
        num_cpus=max(2, os.cpu_count() or 2),
        object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
        include_dashboard=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _joined_ray(address: str) -> Iterator[None]:
    check_address(address)
    try:
        _init_ray(address=address)
    except ConnectionError as error:
        raise StartError(
            f"RAY_ADDRESS: no Ray cluster lets us in at {address} ({error}); does it run, and does"
            " it want another token (RAY_AUTH_TOKEN, or ~/.ray/auth_token)?"
        ) from None
    try:
        yield
    finally:
        _end_idle_serve()
        ray.shutdown()


def check_address(address: str) -> None:
    """Ray itself tries for minutes before it says that nobody listens."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():
        if address == "auto":
            return
        raise StartError(f"RAY_ADDRESS: {address!r} is neither HOST:PORT nor auto")
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise StartError(f"RAY_ADDRESS: nobody listens at {address}: {error}") from None


def _end_idle_serve() -> None:
    """Take Serve's controller away where nobody needs it: no cluster of ours, no application."""
    if not _router_exists() and not serve.status().applications:
        serve.shutdown()


def _init_ray(**options: Any) -> None:
    # Ray and Serve tell their driver about each step of their own; only trouble is of interest.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # Ray's own handler of SIGTERM aborts the process: whoever called us keeps theirs.
    terminate = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    ray.init(
        namespace=ROUTER_NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options
    )
    signal.signal(signal.SIGTERM, terminate)


@contextmanager
def _deployed(spec: EngineSpec, port: int) -> Iterator[None]:
    # The router's name is the cluster's lock: only one can hold it.
    try:
        start_router(spec.settings, loopback=spec.loopback)
    except ValueError:
        raise StartError(
            "a Moeray cluster already runs on this Ray cluster; end it with `moeray stop`"
        ) from None
    try:
        _deploy(spec, port)
        yield
    finally:
        _undeploy()


def _deploy(spec: EngineSpec, port: int) -> None:
    try:
        serve.start(proxy_location="Disabled")
        serve.run(build_application(spec, port), name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        raise StartError(f"deployment failed: {error}") from error


def _undeploy() -> None:
    if APPLICATION in serve.status().applications:
        serve.delete(APPLICATION)
    if _router_exists():
        ray.kill(ray.get_actor(ROUTER_NAME, namespace=ROUTER_NAMESPACE))


def _router_exists() -> bool:
    try:
        ray.get_actor(ROUTER_NAME, namespace=ROUTER_NAMESPACE)
    except ValueError:
        return False
    return True


def _metrics_address() -> str:
    router = ray.get_actor(ROUTER_NAME, namespace=ROUTER_NAMESPACE)
    return str(ray.get(router.metrics_address.remote()))


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _wait_until_serving(target: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with Client(target) as client:
        while not client.is_serving():
            if time.monotonic() > deadline:
                raise StartError(f"{target} did not serve within {timeout_s:g} s")
            time.sleep(_POLL_S)
