"""Answers as ``moeray generate`` prints them: one by one, and how likely their tokens were."""

from collections import deque

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moeray.cluster.terminal import StreamPrinter, printable
from moeray.cluster.whole_answer import WholeAnswer
from moeray.v1 import inference_pb2 as pb


class AnswersPrinter:
    """Prints ``n`` answers in turn: one streams, and what comes of later ones waits."""

    def __init__(self, console: Console, n: int, *, show_analysis: bool) -> None:
        self.whole = WholeAnswer()
        self._console = console
        self._show_analysis = show_analysis
        self._waiting = [deque[pb.GenerateResponse]() for _ in range(n)]
        self._current = -1
        self._open_next()

    def add(self, event: pb.GenerateResponse) -> None:
        """Take one event of the stream; print what its turn has come for."""
        self.whole.add(event)
        self._waiting[event.answer].append(event)
        while self._current < len(self._waiting) and self._waiting[self._current]:
            event = self._waiting[self._current].popleft()
            self._printer.add(event)
            if event.HasField("finished"):
                self._open_next()

    def _open_next(self) -> None:
        self._current += 1
        self._printer = StreamPrinter(
            self._console, show_analysis=self._show_analysis, headings=self._show_analysis
        )
        if 1 < len(self._waiting) > self._current:
            self._console.print(Text(f"[answer {self._current}]", style="bold green"))


def usage_line(answer: pb.Answer) -> str:
    """The answer's counts and why it ended, in one line."""
    usage = answer.usage
    reason = pb.FinishReason.Name(answer.finished.reason).removeprefix("FINISH_REASON_").lower()
    match answer.finished.WhichOneof("matched"):
        case "stop":
            reason += f" string {answer.finished.stop!r}"
        case "stop_token_id":
            reason += f" token {answer.finished.stop_token_id}"
    return (
        f"{usage.prompt_tokens} prompt, {usage.reasoning_tokens} analysis,"
        f" {usage.final_tokens} final tokens; ended by {reason}"
    )


def logprobs_table(answer: pb.Answer) -> Table:
    """A line for each token of the answer: itself, and the likeliest in its place."""
    table = Table.grid(padding=(0, 2))
    for each in answer.logprobs:
        likeliest = "  ".join(f"{_shown(one)} {one.logprob:.2f}" for one in each.top)
        table.add_row(
            Text(_shown(each.token)),
            Text(f"{each.token.logprob:.4f}", style="bold", justify="right"),
            Text(likeliest, style="dim"),
        )
    return table


def _shown(one: pb.Logprob) -> str:
    """The token's text in quotes; its id where it has none, as special tokens."""
    if not one.token:
        return f"#{one.token_id}"
    return printable(repr(one.token.decode("utf-8", "backslashreplace")))
