"""``moeray checkpoint make``: writes a trained or random checkpoint and shows how it routes."""

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
from moeray.worker.checkpoint_make import Weights, fastest_device, make_checkpoint
from moeray.worker.checkpoint_shape import CheckpointSize
from moeray.worker.model_config import CheckpointError
from moeray.worker.random_weights import RandomWeights
from moeray.worker.routing import Routing, measure_routing
from moeray.worker.trained_weights import TrainedWeights, packaged_card

ROUTING_BOUND = 0.9
"""Distinct experts, as a share of what uniform routing hits on average: of random weights."""
_TRAINED_SEQUENCES = 32
_TRAINED_STEPS = 8
"""Of trained weights, whose routing is shown and not judged: it takes a second or two."""

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
    random: Annotated[
        bool,
        typer.Option("--random", help="Untrained weights; 20b and 120b have no others here."),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of random weights: same seed, same weights on the same device. Default 0."
        ),
    ] = None,
) -> None:
    """Make a checkpoint in exactly Hugging Face's gpt-oss layout.

    The size tiny is the trained model that Moeray embeds; with --random it is an untrained one of
    the same shape. The sizes 20b and 120b are always random, with or without --random. Random
    weights are drawn so that routing is close to uniform; exit status 1 when it is not: below 0.9
    of the distinct experts that uniform routing hits.
    """
    is_trained = size is CheckpointSize.TINY and not random
    if is_trained and seed is not None:
        raise typer.BadParameter("the trained model has none; add --random", param_hint="--seed")
    device = fastest_device()
    if device.type == "cpu":
        # The matrices are small: threads that wait for each other cost more than they give.
        torch.set_num_threads(1)
    if is_trained:
        _make_trained(path, device)
    else:
        _make_random(path, size, seed or 0, device)


def _make_trained(path: Path, device: torch.device) -> None:
    console = Console()
    with _failing():
        weights = TrainedWeights.packaged()
        made = _write(console, path, weights, "trained tiny checkpoint", card=packaged_card())
    routing = measure_routing(
        made,
        device=device,
        dtype=_dtype(device),
        sequences=_TRAINED_SEQUENCES,
        steps=_TRAINED_STEPS,
        first_tokens=weights.token_ids().numpy(),
    )
    _show(console, routing)


def _make_random(path: Path, size: CheckpointSize, seed: int, device: torch.device) -> None:
    console = Console()
    with _failing():
        weights = RandomWeights(size.shape, seed, device)
        made = _write(console, path, weights, f"random {size} checkpoint")
    if device.type == "cpu" and size is not CheckpointSize.TINY:
        console.print("Routing was not measured: running a model of this size needs a GPU.")
        return
    routing = measure_routing(made, device=device, dtype=_dtype(device), seed=seed)
    _show(console, routing)
    console.print(f"Lowest share: {routing.lowest_share:.3f}, bound {ROUTING_BOUND}")
    if routing.lowest_share < ROUTING_BOUND:
        raise _failed(f"routing is less even than {ROUTING_BOUND} of uniform")


def _write(
    console: Console, path: Path, weights: Weights, what: str, *, card: Path | None = None
) -> Checkpoint:
    with _progress(console, what) as progress:
        make_checkpoint(path, weights, card=card, progress=progress)
    made = Checkpoint.open(path)
    console.print(f"Made {path}", markup=False, soft_wrap=True)
    return made


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


@contextmanager
def _failing() -> Iterator[None]:
    """Says what is wrong with a checkpoint or a disk, without a traceback."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        raise _failed(str(error)) from error


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
