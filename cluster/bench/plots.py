"""The plots of ``moeray bench``'s page, drawn by matplotlib as SVG to stand inside HTML.

Text and axes take the page's own colour (``currentColor``), so that a plot reads well on a light
and on a dark page. The only module that imports matplotlib: the extra ``moeray[bench]``.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moeray.cluster.bench.record import RequestRecord
from moeray.cluster.bench.stats import percentile
from moeray.cluster.client import EFFORTS

COLOURS: Final = {"all": "#3b82f6", "low": "#10a37f", "medium": "#e08a00", "high": "#d9468f"}
_INK: Final = "#010203"
"""Stands for the page's text colour until the SVG is written."""
_STYLE: Final[Any] = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11.0,
    "text.color": _INK,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_SIZE: Final = (6.4, 3.6)
_CURVE_POINTS: Final = 400
_MIN_BINS, _MAX_BINS, _BIN_S = 12, 120, 0.5
_QUANTILES: Final = tuple(i / _CURVE_POINTS for i in range(_CURVE_POINTS + 1))


def ttft_curve(records: Sequence[RequestRecord]) -> str:
    """Share of requests whose first token came within a time, also by effort."""
    return _svg("ttft", lambda figure: _curves(figure, records, _ttft_ms, "time to first token"))


def inter_token_curve(records: Sequence[RequestRecord]) -> str:
    """Share of tokens that came within a time of the token before, also by effort."""
    return _svg("itl", lambda figure: _curves(figure, records, _itl_ms, "inter-token latency"))


def over_time(records: Sequence[RequestRecord]) -> str:
    """Output tokens a second, and requests in flight."""
    return _svg("time", lambda figure: _draw_over_time(figure, records))


def by_effort(records: Sequence[RequestRecord]) -> str:
    """End-to-end latency of each effort: median, quartiles, and whiskers to p5 and p95."""
    return _svg("effort", lambda figure: _draw_by_effort(figure, records))


def _ttft_ms(records: Sequence[RequestRecord]) -> list[float]:
    return sorted(1e3 * record.ttft_s for record in records if record.ttft_s is not None)


def _itl_ms(records: Sequence[RequestRecord]) -> list[float]:
    return sorted(1e3 * latency for record in records for latency in record.inter_token_s)


def _curves(
    figure: Figure,
    records: Sequence[RequestRecord],
    latencies_ms: Callable[[Sequence[RequestRecord]], list[float]],
    what: str,
) -> None:
    axes = figure.subplots()
    groups = {effort: [r for r in records if r.effort == effort] for effort in EFFORTS}
    groups = {effort: group for effort, group in groups.items() if group}
    if len(groups) > 1:
        groups = {"all": list(records)} | groups
    for name, group in groups.items():
        if ordered := latencies_ms(group):
            values = [percentile(ordered, share) for share in _QUANTILES]
            axes.plot(values, _QUANTILES, color=COLOURS[name], label=name, linewidth=1.8)
    if axes.lines:
        axes.legend(frameon=False, loc="lower right")
    axes.set_xlabel(f"{what}, ms")
    axes.set_ylabel("share below")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    _grid(axes)


def _draw_over_time(figure: Figure, records: Sequence[RequestRecord]) -> None:
    rates, flights = figure.subplots(2, 1, sharex=True)
    end_s = max((record.ended_s for record in records), default=0.0) or 1.0
    bins = max(_MIN_BINS, min(_MAX_BINS, round(end_s / _BIN_S)))
    width_s = end_s / bins
    edges = [number * width_s for number in range(bins + 1)]
    tokens = [0.0] * bins
    for record in records:
        for moment_s, count in zip(record.event_times_s, record.event_tokens, strict=True):
            tokens[min(int(moment_s / width_s), bins - 1)] += count / width_s
    rates.stairs(tokens, edges, fill=True, color=COLOURS["all"], alpha=0.75)
    rates.set_ylabel("output tok/s")
    moments, running = _in_flight(records)
    flights.step(moments, running, where="post", color=COLOURS["medium"], linewidth=1.5)
    flights.set_ylabel("in flight")
    flights.set_xlabel("seconds")
    flights.set_xlim(0, end_s)
    flights.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    for axes in (rates, flights):
        axes.set_ylim(bottom=0)
        _grid(axes)


def _in_flight(records: Sequence[RequestRecord]) -> tuple[list[float], list[int]]:
    changes = [(r.started_s, 1) for r in records] + [(r.ended_s, -1) for r in records]
    moments, running = [0.0], [0]
    for moment_s, change in sorted(changes):
        moments.append(moment_s)
        running.append(running[-1] + change)
    return moments, running


def _draw_by_effort(figure: Figure, records: Sequence[RequestRecord]) -> None:
    axes = figure.subplots()
    groups = {
        effort: [record.e2e_s for record in records if record.effort == effort]
        for effort in EFFORTS
    }
    groups = {effort: latencies for effort, latencies in groups.items() if latencies}
    if groups:
        boxes = axes.boxplot(
            list(groups.values()),
            tick_labels=list(groups),
            orientation="horizontal",
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            medianprops={"color": _INK},
            whiskerprops={"color": _INK},
            capprops={"color": _INK},
            boxprops={"edgecolor": _INK},
        )
        for effort, box in zip(groups, boxes["boxes"], strict=True):
            box.set_facecolor(COLOURS[effort])
    axes.set_xlabel("end-to-end latency, s")
    axes.set_xlim(left=0)
    _grid(axes)


def _grid(axes: Axes) -> None:
    axes.grid(color=_INK, alpha=0.15, linewidth=0.7)
    axes.set_axisbelow(True)


def _svg(name: str, draw: Callable[[Figure], None]) -> str:
    """An ``<svg>`` element without fixed size, whose ids are not those of another plot."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
