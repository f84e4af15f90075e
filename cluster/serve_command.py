"""``moeray serve`` and ``moeray stop``: a cluster in the foreground, and the end of one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeray.cluster.config import SettingsError, load_settings, ray_address, use_ray_token
from moeray.cluster.stop_signals import StopSignals
from moeray.cluster.terminal import fail

if TYPE_CHECKING:
    from moeray.cluster.lifecycle import Cluster


def serve(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Checkpoint folder in Hugging Face's gpt-oss layout."),
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="Name that clients use.")] = None,
    ranks: Annotated[
        int | None, typer.Option(help="Expert-parallel ranks of an engine: 1, 2, 4 or 8.")
    ] = None,
    engines: Annotated[int | None, typer.Option(help="Engine replicas.")] = None,
    gateways: Annotated[int | None, typer.Option(help="Gateway replicas.")] = None,
    host: Annotated[str | None, typer.Option(help="Address of the gRPC port.")] = None,
    port: Annotated[int | None, typer.Option(help="The gRPC port; 0 is a free one.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="First of the 64 ports for metrics; 0 is none.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
) -> None:
    """Run a cluster in the foreground until Ctrl-C.

    Without arguments: the embedded model on whatever the machine has. Every setting can also stand
    in the --config file or in the environment as MOERAY_NAME; flags win over the environment, which
    wins over the file. RAY_ADDRESS joins a running Ray cluster.
    """
    flags = {
        "model": model, "model_name": model_name, "ranks": ranks, "engines": engines,
        "gateways": gateways, "host": host, "port": port, "device": device, "dtype": dtype,
        "metrics_port": metrics_port, "log_level": log_level,
    }  # fmt: skip
    run_foreground(config, {name: value for name, value in flags.items() if value is not None})


def stop() -> None:
    """Stop the Moeray cluster that runs on the Ray cluster at RAY_ADDRESS."""
    address = ray_address()
    if address is None:
        fail("RAY_ADDRESS is not set; a cluster of its own ends with its `moeray serve`")
    use_ray_token()
    from moeray.cluster.lifecycle import StartError, stop_cluster

    try:
        print("stopped" if stop_cluster(address) else "nothing was running")
    except StartError as error:
        fail(str(error))


def run_foreground(config: Path | None, flags: dict[str, Any]) -> None:
    """Serve until SIGINT or SIGTERM; exits with 1 and the reason if the cluster cannot run."""
    try:
        settings = load_settings(config, flags)
    except SettingsError as error:
        fail(str(error))
    if ray_address():
        use_ray_token()
    # Imported here: `moeray generate` need not wait for Ray.
    from moeray.cluster.lifecycle import StartError, running_cluster
    from moeray.cluster.port_lock import PortTaken

    try:
        with (
            StopSignals() as signals,
            running_cluster(settings, lambda line: print(line, flush=True)) as cluster,
        ):
            print(_endpoints(cluster), flush=True)
            signals.wait()
        print("stopped", flush=True)
    except (StartError, PortTaken) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted before it was done; everything that was started is stopped")


def _endpoints(cluster: "Cluster") -> str:
    target = cluster.target
    metrics = cluster.metrics
    shown = f"  metrics  http://{metrics}/metrics, of all processes: /sd\n" if metrics else ""
    flag = "" if target == "127.0.0.1:50051" else f" --target {target}"
    return (
        f"serving {cluster.spec.model.name}\n"
        f"  gRPC     {target}   moeray.v1.InferenceService, grpc.health.v1.Health\n"
        f"{shown}"
        f'  try      moeray generate "Why is the sky blue?" --effort low{flag}\n'
        f"           moeray chat{flag}\n"
        f"  Ctrl-C   drains and stops"
    )
