"""What counting costs on the path of a token: `python -m tests.bench.metrics`."""

import time
import timeit
from itertools import count

from moeray.cluster.gateway_metrics import GatewayMetrics
from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.interceptors import Call
from moeray.cluster.metrics import WeightedHistogram

RUNS = 100_000


def microseconds(action: str, scope: dict[str, object]) -> float:
    """CPU time of one run of ``action``: the best of five series."""
    series = timeit.repeat(action, globals=scope, timer=time.process_time, number=RUNS, repeat=5)
    return min(series) / RUNS * 1e6


def main() -> None:
    metrics = GatewayMetrics(running=lambda: 0, link_breaks=lambda: 0)
    observer = metrics.observe_answer(Call("request", None), "model", ReasoningEffort.HIGH)
    observer.placed("engine")
    observer.progress(1)
    scope: dict[str, object] = {
        "observer": observer,
        "step": WeightedHistogram(),
        "tokens": count(2),
    }
    step: dict[str, object] = {"step": WeightedHistogram()}
    progress = microseconds("observer.progress(next(tokens))", scope)
    print(f"gateway, one event of an answer  {progress:6.2f} us")
    print(f"engine, one step                 {microseconds('step.observe(0.02)', step):6.2f} us")


if __name__ == "__main__":
    main()
