"""``moeray bench``: drive a running server over gRPC and report how it did."""

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from rich.console import Console

from moeray.cluster.bench import flags
from moeray.cluster.bench.load import (
    MIN_OUTPUT_TOKENS,
    ClosedLoop,
    Load,
    Poisson,
    Ramp,
    Shape,
)
from moeray.cluster.bench.report import BenchReport, print_report
from moeray.cluster.bench.run import Limits
from moeray.cluster.bench.session import Interrupted, Plan, run_session
from moeray.cluster.client import ClientError
from moeray.cluster.generate_options import DEFAULT_TARGET, Target
from moeray.cluster.report_files import check_report_file, write_report
from moeray.cluster.terminal import complain, fail

DEFAULT_CONCURRENCY: Final = 32
DEFAULT_REQUESTS: Final = 256
INTERRUPTED_STATUS: Final = 130

T = TypeVar("T")

Concurrency = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Closed loop: so many clients, each asking again when answered."
        f" The default load, with {DEFAULT_CONCURRENCY}.",
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="R",
        help="Open loop: Poisson arrivals, R a second, started when due whatever still runs.",
    ),
]
RampOption = Annotated[
    str | None,
    typer.Option(
        metavar="FROM:TO:SECONDS",
        help="Open loop whose Poisson rate changes linearly over SECONDS.",
    ),
]
Requests = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Stop after so many requests."
        f" Default: {DEFAULT_REQUESTS} where neither --duration nor --ramp ends the run.",
    ),
]
Duration = Annotated[
    float | None,
    typer.Option(metavar="S", help="Start no request after S seconds; running ones finish."),
]
PromptTokens = Annotated[
    str,
    typer.Option(
        metavar="LENGTH",
        help="Tokens of the rendered prompt: N, A:B (uniform) or lognormal:MEAN:SIGMA (SIGMA of the"
        " logarithm). Text is cut by words to about this length, as the server counts.",
    ),
]
OutputTokens = Annotated[
    str,
    typer.Option(
        metavar="LENGTH",
        help=f"max_output_tokens, headers included, at least {MIN_OUTPUT_TOKENS}: N, A:B or"
        " lognormal:MEAN:SIGMA.",
    ),
]
Natural = Annotated[
    bool,
    typer.Option("--natural", help="Let the model end its answers, rather than set ignore_eos."),
]
Effort = Annotated[
    str,
    typer.Option(metavar="MIX", help="Weights of efforts, such as low=0.5,medium=0.3,high=0.2."),
]
PrefixTokens = Annotated[
    int,
    typer.Option(min=0, help="Begin each prompt with a shared system text of so many more tokens."),
]
Slo = Annotated[
    str | None,
    typer.Option(
        metavar="LIMITS",
        help="Report goodput: requests within all of, say, ttft=500ms,itl=50ms,e2e=10s. itl is a"
        " request's mean.",
    ),
]


def bench(
    target: Target = DEFAULT_TARGET,
    concurrency: Concurrency = None,
    rate: Rate = None,
    ramp: RampOption = None,
    requests: Requests = None,
    duration: Duration = None,
    warmup: Annotated[
        int, typer.Option(min=0, help="Requests before the measured ones, not reported.")
    ] = 0,
    prompt_tokens: PromptTokens = "512",
    output_tokens: OutputTokens = "128",
    natural: Natural = False,
    effort: Effort = "medium=1",
    prefix_tokens: PrefixTokens = 0,
    prefixes: Annotated[int, typer.Option(min=1, help="How many shared system texts.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=2.0, help="Default: the server's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same requests and arrivals.")] = 0,
    model: Annotated[str, typer.Option(help="Default: the only one served.")] = "",
    channels: Annotated[int, typer.Option(min=1, help="Connections to the server.")] = 4,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Deadline of each request.")
    ] = None,
    slo: Slo = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything that was measured.")
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with plots. Needs the extra moeray[bench]."),
    ] = None,
) -> None:
    """Drive a running server and report throughput, latency percentiles and goodput.

    TTFT is the time from the moment a request was due to the first event that holds tokens.
    Inter-token latency (ITL) is the time between two events over the tokens of the later one,
    counted once for each of these tokens: an event may hold several, and the server is asked for
    token ids to count them. All latencies are those of requests that ended well.

    Ctrl-C ends a run early; what was measured is still reported. Exit status: 0, 1 where no request
    ended well, 130 when interrupted.
    """
    settings = {name: value for name, value in locals().items() if not name.endswith("_file")}
    load = _load(concurrency, rate, ramp, duration)
    if isinstance(load, ClosedLoop):
        settings["concurrency"] = load.concurrency
    if requests is None and duration is None and ramp is None:
        requests = settings["requests"] = DEFAULT_REQUESTS
    shape = Shape(
        seed=seed,
        prompt_tokens=_parsed("--prompt-tokens", prompt_tokens, flags.parse_prompt_lengths),
        output_tokens=_parsed("--output-tokens", output_tokens, flags.parse_output_lengths),
        efforts=_parsed("--effort", effort, flags.parse_efforts),
        prefix_tokens=prefix_tokens,
        prefixes=prefixes,
        temperature=temperature,
        natural=natural,
        model=model,
    )
    if prefixes > 1 and not prefix_tokens:
        raise typer.BadParameter("needs --prefix-tokens", param_hint="--prefixes")
    _check_files(json_file, html_file)
    plan = Plan(
        target=target,
        channels=channels,
        shape=shape,
        load=load,
        limits=Limits(
            requests=requests,
            duration_s=load.seconds if isinstance(load, Ramp) else _above_0("--duration", duration),
            timeout_s=_above_0("--timeout", timeout),
        ),
        warmup=warmup,
        warmup_concurrency=concurrency or DEFAULT_CONCURRENCY,
        service_level=None if slo is None else _parsed("--slo", slo, flags.parse_service_level),
        settings=settings,
    )
    _conclude(_run(plan), json_file, html_file)


def _load(
    concurrency: int | None, rate: float | None, ramp: str | None, duration: float | None
) -> Load:
    if sum(given is not None for given in (concurrency, rate, ramp)) > 1:
        raise typer.BadParameter(
            "give one of --concurrency, --rate and --ramp",
            param_hint="--rate" if rate is not None else "--ramp",
        )
    if ramp is not None:
        if duration is not None:
            raise typer.BadParameter("--ramp has its own seconds", param_hint="--duration")
        return _parsed("--ramp", ramp, flags.parse_ramp)
    if (checked := _above_0("--rate", rate)) is not None:
        return Poisson(checked)
    return ClosedLoop(concurrency or DEFAULT_CONCURRENCY)


def _parsed(flag: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None


def _above_0(flag: str, number: float | None) -> float | None:
    if number is not None and not 0 < number < float("inf"):
        raise typer.BadParameter(f"{number:g} is not above 0", param_hint=flag)
    return number


def _check_files(json_file: Path | None, html_file: Path | None) -> None:
    """What cannot be written at the end is refused at the start."""
    check_report_file(json_file, "--json")
    check_report_file(html_file, "--html")
    if html_file is not None and find_spec("matplotlib") is None:
        fail("--html needs matplotlib: pip install 'moeray[bench]'")


def _run(plan: Plan) -> BenchReport:
    console = Console(stderr=True, highlight=False)
    try:
        return asyncio.run(run_session(plan, console))
    except ClientError as error:
        fail(str(error))
    except Interrupted:
        complain("interrupted before anything was measured")
        raise typer.Exit(INTERRUPTED_STATUS) from None


def _conclude(report: BenchReport, json_file: Path | None, html_file: Path | None) -> None:
    """Print and write, then leave with the right status."""
    print_report(report, Console(highlight=False))
    if json_file is not None:
        write_report(json_file, report.to_json())
    if html_file is not None:
        # Imports matplotlib.
        from moeray.cluster.bench.html import page

        write_report(html_file, page(report))
    if report.interrupted:
        raise typer.Exit(INTERRUPTED_STATUS)
    if not report.records:
        fail("no request was due before the end of the run")
    if not report.summary.completed:
        fail("no request ended well")
