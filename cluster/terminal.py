"""How answers look on a terminal: channels as they stream, and nothing that a model could forge."""

import unicodedata
from typing import NoReturn

import typer
from rich.console import Console
from rich.style import Style
from rich.text import Text

from moeray.cluster.whole_answer import WholeAnswer
from moeray.v1 import inference_pb2 as pb

_ERRORS = Console(stderr=True, highlight=False, soft_wrap=True)
ANALYSIS = Style(dim=True, italic=True)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """``text`` with control characters replaced.

    A model may write escape sequences; a terminal would obey them.
    """
    return "".join(
        c if c in "\n\t" or not unicodedata.category(c).startswith("C") else _REPLACEMENT
        for c in text
    )


class StreamPrinter:
    """Prints an answer as its events come, one heading per channel that is shown."""

    def __init__(self, console: Console, *, show_analysis: bool, headings: bool) -> None:
        self._console = console
        self._show_analysis = show_analysis
        self._headings = headings
        self._channel: str | None = None
        self.answer = WholeAnswer()

    def add(self, event: pb.GenerateResponse) -> None:
        """Take one event of the stream and print what it adds."""
        self.answer.add(event)
        match event.WhichOneof("event"):
            case "delta":
                self._print_delta(event.delta)
            case "tool_call" if event.tool_call.WhichOneof("part") == "start":
                self._open(f"call {event.tool_call.start.name}")
            case "tool_call":
                self._write(event.tool_call.arguments)
            case "finished":
                self._end_line()

    def _print_delta(self, delta: pb.Delta) -> None:
        if delta.channel == pb.CHANNEL_ANALYSIS:
            if self._show_analysis:
                self._open("analysis")
                self._write(delta.text, ANALYSIS)
            return
        self._open("commentary" if delta.channel == pb.CHANNEL_COMMENTARY else "final")
        self._write(delta.text)

    def _open(self, channel: str) -> None:
        if channel == self._channel:
            return
        self._end_line()
        self._channel = channel
        if self._headings:
            self._console.print(Text(f"[{printable(channel)}]", style="bold cyan"))

    def _write(self, text: str, style: Style | None = None) -> None:
        # Soft wrap: the terminal breaks lines, so that text copied from it stays whole.
        self._console.print(Text(printable(text), style=style or ""), end="", soft_wrap=True)

    def _end_line(self) -> None:
        if self._channel is not None:
            self._console.print()


def complain(message: str) -> None:
    """Print ``message`` to stderr in the command's name."""
    _ERRORS.print(f"moeray: {message}", markup=False)


def fail(message: str) -> NoReturn:
    """Print ``message`` to stderr and exit with 1; inside a command only."""
    complain(message)
    raise typer.Exit(1)
