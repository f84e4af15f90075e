"""``moeray checkpoint make``: writes a random checkpoint and shows how evenly it routes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from moeray.worker import checkpoint_make
from moeray.worker.checkpoint import Checkpoint
from moeray.worker.checkpoint_make import fastest_device, make_checkpoint
from moeray.worker.checkpoint_shape import CheckpointSize
from moeray.worker.model_config import CheckpointError
from moeray.worker.routing import Routing, measure_routing

ROUTING_BOUND = 0.9
"""Distinct experts, as a share of what uniform routing hits on average."""

app = typer.Typer(help="Checkpoints on disk.", no_args_is_help=True)


@app.callback()
def checkpoint() -> None:
    """Checkpoints on disk."""


@app.command()
def make(
    path: Annotated[Path, typer.Argument(help="The folder to make; it must be new or empty.")],
    size: Annotated[
        CheckpointSize, typer.Option(help="The embedded model, or one of OpenAI's two.")
    ] = CheckpointSize.TINY,
    seed: Annotated[
        int, typer.Option(min=0, help="Same seed, same weights on the same device.")
    ] = 0,
) -> None:
    """Make a random checkpoint in exactly Hugging Face's gpt-oss layout.

    The weights are untrained, and drawn so that routing is close to uniform. Exit status 1 when it
    is not: below 0.9 of the distinct experts that uniform routing hits.
    """
    console = Console()
    device = fastest_device()
    if device.type == "cpu":
        # The matrices are small: threads that wait for each other cost more than they give.
        torch.set_num_threads(1)
    try:
        with _progress(console, f"{size} checkpoint") as progress:
            make_checkpoint(path, size.shape, seed=seed, device=device, progress=progress)
        made = Checkpoint.open(path)
    except (CheckpointError, OSError) as error:
        raise _failed(str(error)) from error
    console.print(f"Made {path}", markup=False, soft_wrap=True)
    if device.type == "cpu" and size is not CheckpointSize.TINY:
        console.print("Routing was not measured: running a model of this size needs a GPU.")
        return
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    routing = measure_routing(made, device=device, dtype=dtype, seed=seed)
    _show(console, routing)
    if routing.lowest_share < ROUTING_BOUND:
        raise _failed(f"routing is less even than {ROUTING_BOUND} of uniform")


def _failed(message: str) -> typer.Exit:
    Console(stderr=True).print(f"moeray: {message}", markup=False, soft_wrap=True)
    return typer.Exit(1)


@contextmanager
def _progress(console: Console, what: str) -> Iterator[checkpoint_make.Progress]:
    """A bar by bytes on a terminal, a line per shard elsewhere."""
    if not console.is_terminal:

        def line(done: int, total: int) -> None:
            console.print(f"Wrote {done / 1e9:.2f} of {total / 1e9:.2f} GB of the {what}")

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(console: Console, routing: Routing) -> None:
    table = Table(
        title=f"Distinct experts that {routing.sequences} sequences hit in one step"
        f" (uniform routing: {routing.expected:.1f})"
    )
    table.add_column("Layer", justify="right")
    table.add_column("First step", justify="right")
    table.add_column(f"After {routing.steps} greedy steps", justify="right")
    table.add_column("Lower share of uniform", justify="right")
    for number, layer in enumerate(routing.layers):
        share = min(layer.first, layer.last) / routing.expected
        table.add_row(str(number), str(layer.first), str(layer.last), f"{share:.3f}")
    console.print(table)
    console.print(f"Lowest share: {routing.lowest_share:.3f}, bound {ROUTING_BOUND}")
