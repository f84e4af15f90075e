"""``moeray demo``: a whole cluster on this machine, asked a few questions, stopped.

What is printed comes back through the public gRPC API. The embedded model is asked what it was
trained for: a product at each reasoning effort, a function call, an answer in JSON. Another model,
or a prompt of the user's own, is asked once at each effort.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from moeray.cluster.client import Client, ClientError
from moeray.cluster.config import SettingsError, load_settings
from moeray.cluster.stop_signals import StopSignals
from moeray.cluster.terminal import fail

if TYPE_CHECKING:
    from moeray.cluster.lifecycle import Cluster

PROMPT: Final = "Why is the sky blue?"
"""For other models than the embedded one."""


def demo(
    ranks: Annotated[int, typer.Option(help="Expert-parallel ranks: 1, 2, 4 or 8.")] = 2,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; default: the embedded model.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What to ask at each effort, instead of the three questions."),
    ] = None,
) -> None:
    """Start a cluster, ask it three questions, show what comes back, stop it.

    They show reasoning effort, a function call and an answer in JSON. Exit status: 1 where an
    answer has not the form that the server promises, whether it is right or not.
    """
    flags: dict[str, Any] = {"ranks": ranks, "port": 0}
    try:
        settings = load_settings(None, flags | ({"model": model} if model else {}))
    except SettingsError as error:
        fail(str(error))
    from moeray.cluster.lifecycle import StartError, running_cluster
    from moeray.cluster.port_lock import PortTaken

    console = Console(highlight=False)
    try:
        with (
            StopSignals(),
            running_cluster(settings, lambda line: console.print(line, style="dim")) as cluster,
        ):
            complaints = _show(cluster, prompt, console)
    except (StartError, PortTaken, ClientError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted")
    if complaints:
        fail("; ".join(complaints))


def _show(cluster: "Cluster", prompt: str | None, console: Console) -> list[str]:
    """Ask; returns what was not as promised."""
    # Imports jsonschema.
    from moeray.cluster import demo_questions as questions

    if prompt is None and not cluster.spec.model.embedded:
        prompt = PROMPT
    with Client(cluster.target) as client:
        stage = questions.Stage(client, console)
        if prompt is None:
            runs = questions.ask_questions(stage)
        else:
            runs = questions.ask_prompt(stage, prompt)
    console.print(questions.runs_table(runs))
    return [complaint for run in runs for complaint in questions.form_complaints(run)]
