"""``moeray demo``: a whole cluster on this machine, asked once at each reasoning effort, stopped.

What is printed comes back through the public gRPC API. The embedded model's weights are random, so
its words mean nothing; what can be seen, and is checked, is the machinery: the effort in the
prompt, legal Harmony, and a thinking budget that ends the analysis and opens the answer.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from moeray.cluster.client import Client, ClientError, user_request
from moeray.cluster.config import SettingsError, load_settings
from moeray.cluster.stop_signals import StopSignals
from moeray.cluster.terminal import StreamPrinter, fail
from moeray.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from moeray.cluster.lifecycle import Cluster

PROMPT = "Why is the sky blue?"
BUDGETS = {"low": 16, "medium": 48, "high": 96}
ANSWER_TOKENS = 48
"""Room for the answer and the headers, beyond the thinking budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One answer and its times in seconds, as this client saw them."""

    effort: str
    answer: pb.Answer
    first_token_s: float
    total_s: float

    @property
    def tokens_per_s(self) -> float:
        """Decode rate: tokens after the first event over the time they took."""
        return self.answer.usage.output_tokens / max(self.total_s - self.first_token_s, 1e-9)


def demo(
    ranks: Annotated[int, typer.Option(help="Expert-parallel ranks: 1, 2, 4 or 8.")] = 2,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; default: the embedded model.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = PROMPT,
) -> None:
    """Start a cluster, ask it at each reasoning effort, show what comes back, stop it."""
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
            problems = _show(cluster, prompt, console)
    except (StartError, PortTaken, ClientError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted")
    if problems:
        fail("; ".join(problems))


def _show(cluster: "Cluster", prompt: str, console: Console) -> list[str]:
    """Ask at each effort; returns what was not as promised."""
    if cluster.spec.model.embedded:
        console.print(
            "The embedded model is untrained (random weights): its text is noise by design.\n"
            "Look at its form instead: channels, effort, and the thinking budget.",
            style="yellow",
        )
    with Client(cluster.target) as client:
        runs = [_ask(client, prompt, effort, console) for effort in BUDGETS]
    console.print(_table(runs))
    return [problem for run in runs for problem in _problems(run)]


def _ask(client: Client, prompt: str, effort: str, console: Console) -> _Run:
    request = user_request(
        prompt,
        effort=effort,
        thinking_budget=BUDGETS[effort],
        max_output_tokens=BUDGETS[effort] + ANSWER_TOKENS,
        # Random weights choose between analysis and an answer at random: pinned, they think first.
        seed=2026,
        current_date="2026-01-01",
    )
    rendered = client.count_tokens(request).prompt
    in_prompt = next((line for line in rendered.splitlines() if "Reasoning:" in line), "")
    console.rule(f"effort {effort}, thinking budget {BUDGETS[effort]}; prompt says: {in_prompt!r}")
    printer = StreamPrinter(console, show_analysis=True, headings=True)
    start = time.perf_counter()
    first_token = None
    for event in client.generate(request):
        if first_token is None and event.WhichOneof("event") != "started":
            first_token = time.perf_counter()
        printer.add(event)
    end = time.perf_counter()
    return _Run(
        effort=effort,
        answer=printer.answer.first,
        first_token_s=(first_token or end) - start,
        total_s=end - start,
    )


def _problems(run: _Run) -> list[str]:
    usage, budget = run.answer.usage, BUDGETS[run.effort]
    checks = {
        f"analysis took {usage.reasoning_tokens} of {budget} tokens": (
            0 < usage.reasoning_tokens <= budget
        ),
        "the answer is empty": bool(run.answer.final),
        "the usage does not add up": usage.output_tokens
        == usage.reasoning_tokens + usage.final_tokens + usage.control_tokens,
    }
    return [f"{run.effort}: {problem}" for problem, holds in checks.items() if not holds]


def _table(runs: list[_Run]) -> Table:
    table = Table(
        title="What the client saw: tokens, time to first token (TTFT), decode rate", box=SIMPLE
    )
    columns: dict[str, Callable[[_Run], str]] = {
        "effort": lambda run: run.effort,
        "prompt": lambda run: str(run.answer.usage.prompt_tokens),
        "budget": lambda run: str(BUDGETS[run.effort]),
        "analysis": lambda run: str(run.answer.usage.reasoning_tokens),
        "final": lambda run: str(run.answer.usage.final_tokens),
        "TTFT ms": lambda run: f"{run.first_token_s * 1e3:.0f}",
        "tok/s": lambda run: f"{run.tokens_per_s:.0f}",
        "end": lambda run: (
            pb.FinishReason.Name(run.answer.finished.reason).removeprefix("FINISH_REASON_").lower()
        ),
    }
    for name in columns:
        table.add_column(name, justify="left" if name in ("effort", "end") else "right")
    for run in runs:
        table.add_row(*(show(run) for show in columns.values()))
    return table
