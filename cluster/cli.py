"""The ``moeray`` command.

Starts without torch: commands that need it live in ``worker/``, join by name through the
entry-point group ``moeray.commands``, and import torch only when they run.
"""

import sys
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated

import typer

from moeray.cluster import (
    demo_command,
    drain_command,
    generate_command,
    serve_command,
)
from moeray.cluster.bench import command as bench_command
from moeray.cluster.terminal import complain
from moeray.cluster.tiny import eval_command

COMMAND_GROUP = "moeray.commands"
ENGINE_MODULES = ("numpy", "safetensors", "torch", "triton")
"""What the extra ``moeray[engine]`` brings: a gateway's machine may lack it."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Serve OpenAI's gpt-oss models on Ray, and talk to them over gRPC.",
)
app.command()(serve_command.serve)
app.command()(serve_command.stop)
app.command()(generate_command.generate)
app.command()(generate_command.chat)
app.command()(demo_command.demo)
app.command()(bench_command.bench)
app.add_typer(eval_command.app, name="eval")
app.command(name="drain-node")(drain_command.drain_node)


@app.callback(invoke_without_command=True)
def root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        print(version("moeray"))
        raise typer.Exit


def main() -> None:
    """Entry point of the ``moeray`` script."""
    for entry in sorted(entry_points(group=COMMAND_GROUP), key=lambda entry: entry.name):
        _join(entry)
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name not in ENGINE_MODULES:
            raise
        complain(f"this needs {error.name}: pip install 'moeray[engine]'")
        sys.exit(1)


def _join(entry: EntryPoint) -> None:
    """Add an installed command; it is imported when it is called, and parses its own arguments."""

    @app.command(
        entry.name,
        help=f"See `moeray {entry.name} --help`. Needs the extra moeray[engine].",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    def run(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        entry.load()(arguments or [], prog_name=f"moeray {entry.name}")
