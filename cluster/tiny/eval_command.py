"""``moeray eval``: ask a served model problems whose answers are known, and report how it did."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from moeray.cluster.client import Client, ClientError, user_request
from moeray.cluster.config import SettingsError, load_settings
from moeray.cluster.report_files import check_report_file, write_report
from moeray.cluster.stop_signals import StopSignals
from moeray.cluster.terminal import complain, fail

if TYPE_CHECKING:
    from moeray.cluster.tiny.eval_report import EvalReport

DEFAULT_CONCURRENCY: Final = 32
INTERRUPTED_STATUS: Final = 130
_PROBE_TIMEOUT_S: Final = 60.0

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Ask a served model problems whose answers are known.",
)


@app.callback()
def root() -> None:
    pass


@app.command()
def tiny(
    target: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A running server. Default: a cluster of its own with the embedded model.",
        ),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(help="Expert-parallel ranks of its own cluster: 1, 2, 4 or 8. Default: 1."),
    ] = None,
    problems: Annotated[
        int, typer.Option(min=1, help="How many problems, each asked at every effort.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same problems.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures and the failures.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests in flight at once.")
    ] = DEFAULT_CONCURRENCY,
) -> None:
    """Ask held-out problems of the kinds that the embedded model was trained on.

    They are asked at each reasoning effort, greedily, through the public API, of whatever model is
    served. The tables show accuracy and tokens by task and effort, and what is asked of the
    embedded model. The problems are drawn from the seed and are never among those of training.

    Ctrl-C ends a run early; what was measured is still reported. Exit status: 0 when all problems
    were asked, whatever the accuracy; 1 where the server cannot be asked; 130 when interrupted.
    """
    if target is not None and ranks is not None:
        raise typer.BadParameter("a running server has its own ranks", param_hint="--ranks")
    check_report_file(json_file, "--json")
    settings = {
        "target": target,
        "ranks": ranks if target else ranks or 1,
        "problems": problems,
        "seed": seed,
        "concurrency": concurrency,
    }
    console = Console(stderr=True, highlight=False)
    try:
        with StopSignals(), _server(target, ranks, console) as served:
            # Before the cluster drains: what was measured is not lost if that is interrupted.
            _conclude(_evaluate(served, settings, console), json_file)
    except ClientError as error:
        fail(str(error))
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(INTERRUPTED_STATUS) from None


@contextmanager
def _server(target: str | None, ranks: int | None, console: Console) -> Iterator[str]:
    """``target``, or that of a cluster which is started here and stopped at the end."""
    if target is not None:
        yield target
        return
    try:
        settings = load_settings(None, {"ranks": ranks or 1, "port": 0})
    except SettingsError as error:
        fail(str(error))
    from moeray.cluster.lifecycle import StartError, running_cluster
    from moeray.cluster.port_lock import PortTaken

    try:
        with running_cluster(settings, lambda line: console.print(line, style="dim")) as cluster:
            yield cluster.target
    except (StartError, PortTaken) as error:
        fail(str(error))


def _evaluate(target: str, settings: dict[str, Any], console: Console) -> "EvalReport":
    """Ask everything. Raises ClientError where the server does not answer at all."""
    from moeray.cluster.tiny.eval_progress import display
    from moeray.cluster.tiny.eval_report import EvalReport
    from moeray.cluster.tiny.eval_run import EvalRun, Plan
    from moeray.cluster.tiny.problems import problems
    from moeray.cluster.tiny.splits import Split

    with Client(target) as client:
        environment = _environment(client)
        seed, count = settings["seed"], settings["problems"]
        plan = Plan(
            problems=list(islice(problems(Split.HELD_OUT, seed), count)),
            seed=seed,
            concurrency=settings["concurrency"],
        )
        run = EvalRun(client, plan)
        begin = time.monotonic()
        with display(console, plan.trials) as show:
            run.run(show)
    return EvalReport(
        settings=settings,
        environment=environment | {"seconds": round(time.monotonic() - begin, 1)},
        problems=count,
        ended_early=run.ended_early,
        trials=run.trials,
    )


def _environment(client: Client) -> dict[str, Any]:
    """What is asked, and proof that it answers. Raises ClientError where it does not."""
    info = client.server_info()
    # Shows at once what every request would: no engine, or several models to choose from.
    probe = user_request("Hello", effort="low", max_output_tokens=16)
    model = client.complete(probe, _PROBE_TIMEOUT_S).model
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "client": {"moeray": version("moeray"), "python": platform.python_version()},
        "server": {"moeray": info.version, "model": model},
    }


def _conclude(report: "EvalReport", json_file: Path | None) -> None:
    """Print and write, then leave with the right status."""
    from moeray.cluster.tiny.eval_report import print_report

    if not report.trials and report.ended_early == "interrupted":
        complain("interrupted before anything was measured")
        raise typer.Exit(INTERRUPTED_STATUS)
    print_report(report, Console(highlight=False))
    if json_file is not None:
        write_report(json_file, report.to_json())
    if report.ended_early == "interrupted":
        complain("interrupted: the figures are partial")
        raise typer.Exit(INTERRUPTED_STATUS)
    if report.ended_early:
        fail(report.ended_early)
