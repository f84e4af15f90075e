"""What a campaign of faults measured, as a table and as plain data."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.chaos.load import Stream

END_WITHIN_S = {"SIGKILL": 1.0, "SIGSTOP": 5.0}
REBUILT_WITHIN_S = 15.0


@dataclass(slots=True, kw_only=True)
class Fault:
    """One fault. Times are in seconds after the signal."""

    kind: str
    signal: str
    struck_at: float
    """Of time.monotonic()."""
    open_streams: int
    served_s: float | None = None
    """Until the answer to a question asked at the fault began; None: never."""
    rebuilt_s: float | None = None
    """Until the process and its group were replaced and worked; None: not in time."""
    complete: int = 0
    unavailable: int = 0
    without_details: int = 0
    """Of the unavailable: ended by the client's side of a broken connection."""
    refused: int = 0
    """Of the unavailable: had waited for an engine, said nothing yet, and were told to retry."""
    other: int = 0
    last_end_s: float | None = None
    """Until the last stream that the fault cut had ended; from that one's start, if later."""


@dataclass(slots=True, kw_only=True)
class Report:
    faults: list[Fault] = field(default_factory=list)
    streams: int = 0
    complete: int = 0
    unavailable: int = 0
    violations: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)

    def count_streams(self, ended: Sequence[Stream]) -> None:
        """Sort all streams into the faults during which they were open."""
        self.streams = len(ended)
        self.complete = sum(stream.outcome == "complete" for stream in ended)
        self.unavailable = sum(stream.outcome == "unavailable" for stream in ended)
        self.violations += [_dump(stream) for stream in ended if stream.violations]
        bounds = [fault.struck_at for fault in self.faults[1:]] + [float("inf")]
        for fault, next_at in zip(self.faults, bounds, strict=True):
            _count(fault, next_at, ended)

    def failures(self, *, judge_times: bool) -> list[str]:
        """Everything that speaks against the cluster."""
        failed = [*self.violations, *(f"leak: {leak}" for leak in self.leaks)]
        for number, fault in enumerate(self.faults):
            name = f"fault {number} ({fault.signal} {fault.kind})"
            if fault.rebuilt_s is None or fault.served_s is None:
                failed.append(f"{name}: not rebuilt")
            elif judge_times and fault.rebuilt_s > REBUILT_WITHIN_S:
                failed.append(f"{name}: rebuilt after {fault.rebuilt_s:.1f} s")
            elif judge_times and fault.refused:
                failed.append(f"{name}: {fault.refused} waiting requests were refused")
            within_s = END_WITHIN_S[fault.signal]
            if judge_times and fault.last_end_s is not None and fault.last_end_s > within_s:
                failed.append(f"{name}: a stream ended after {fault.last_end_s:.2f} s")
        return failed

    def as_data(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        lines = [
            f"{'fault':16} {'count':>5} {'complete':>8} {'unavail.':>8} {'refused':>7} {'other':>5}"
            f" {'stream end p50/max':>20} {'rebuilt p50/max':>17} {'served p50/max':>16}"
        ]
        groups = sorted({(fault.kind, fault.signal) for fault in self.faults})
        for kind, signal in groups:
            of = [f for f in self.faults if (f.kind, f.signal) == (kind, signal)]
            lines.append(
                f"{kind + ' ' + signal:16} {len(of):5} {sum(f.complete for f in of):8}"
                f" {sum(f.unavailable for f in of):8} {sum(f.refused for f in of):7}"
                f" {sum(f.other for f in of):5}"
                f" {_spread([f.last_end_s for f in of], 2):>20}"
                f" {_spread([f.rebuilt_s for f in of], 1):>17}"
                f" {_spread([f.served_s for f in of], 1):>16}"
            )
        lines.append(
            f"{self.streams} streams: {self.complete} complete, {self.unavailable} unavailable;"
            f" observer violations: {len(self.violations)}; leaks: {len(self.leaks)}"
        )
        return "\n".join(lines)


def _count(fault: Fault, next_at: float, ended: Sequence[Stream]) -> None:
    for stream in ended:
        end = stream.ended_at or float("inf")
        if end < fault.struck_at or stream.started_at >= next_at:
            continue
        was_open = stream.started_at <= fault.struck_at
        if was_open and stream.outcome == "complete":
            fault.complete += 1
        elif stream.outcome == "unavailable" and end < next_at:
            fault.unavailable += 1
            fault.without_details += not (stream.ending and stream.ending.from_server)
            if stream.spoke_at is None and stream.ending and stream.ending.from_server:
                fault.refused += 1
            else:
                late_s = end - max(fault.struck_at, stream.started_at)
                fault.last_end_s = max(late_s, fault.last_end_s or 0.0)
        elif was_open and stream.outcome == "other":
            fault.other += 1


def _dump(stream: Stream) -> str:
    wrong = "; ".join(f"{v.damage.name} ({v.detail})" for v in stream.violations)
    ending = stream.ending
    status = f"{ending.code.name} {ending.message[:200]!r}" if ending else "no end"
    return (
        f"question {stream.question} on {stream.engine_id or 'no engine'}: {wrong};"
        f" {stream.tokens} tokens, then {status}"
    )


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.median(known):.{digits}f} / {max(known):.{digits}f} s"
