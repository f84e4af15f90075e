"""Time of the scheduler's part of a step: plan, arrays, commit, on one rank that decodes.

Run as `python -m tests.bench.scheduler [--sequences 256] [--steps 200]`. Prints microseconds per
step (median), split into the scheduler's plan, the arrays for the ranks, and the commit. It is this
thread's CPU time, so that other work on the machine does not count.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from moeray.vocabulary.harmony_tokens import CHANNEL, MESSAGE, START
from moeray.worker.channels import ChannelAutomaton
from moeray.worker.config import EngineConfig
from moeray.worker.kv_plan import KvPlan
from moeray.worker.plan import Drawn
from moeray.worker.planner import rank_plans
from moeray.worker.request import (
    BodyKind,
    ChannelRules,
    EngineRequest,
    Header,
    RequestKey,
    SamplingParams,
)
from moeray.worker.scheduler import Scheduler

TEXT_TOKEN = 1000
ANALYSIS, FINAL, ASSISTANT = 35644, 17196, 173781
RULES = ChannelRules(
    turn_opening=(START, ASSISTANT),
    headers=(
        Header((CHANNEL, ANALYSIS, MESSAGE), BodyKind.ANALYSIS),
        Header((CHANNEL, FINAL, MESSAGE), BodyKind.FINAL),
    ),
)


def decoding_scheduler(sequences: int, prompt_tokens: int, steps: int) -> Scheduler:
    """A scheduler whose sequences are all in an analysis body, their prompts computed."""
    context_length = prompt_tokens + steps + 100
    config = EngineConfig(
        model=Path("none"),
        kv_tokens_per_rank=sequences * (context_length + 16),
        max_running_per_rank=sequences,
        step_tokens_per_rank=sequences * (prompt_tokens + 8),
    )
    kv = KvPlan.of(config, context_length, 128)
    scheduler = Scheduler(config, kv, context_length=context_length, new_automaton=ChannelAutomaton)
    for key in range(sequences):
        scheduler.submit(
            EngineRequest(
                key=RequestKey(1, key),
                epoch=0,
                rank=0,
                prompt=(TEXT_TOKEN,) * prompt_tokens,
                max_output_tokens=steps + 99,
                sampling=SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=key),
                channel_rules=RULES,
            )
        )
    for token in (ANALYSIS, TEXT_TOKEN):
        plan = scheduler.plan()
        assert plan is not None
        scheduler.commit(plan, [Drawn.plain(np.full(sequences, token))])
    return scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    scheduler = decoding_scheduler(options.sequences, options.prompt_tokens, options.steps)
    times: dict[str, list[float]] = {"plan": [], "arrays": [], "commit": []}
    drawn = [Drawn.plain(np.full(options.sequences, TEXT_TOKEN))]
    for _ in range(options.steps):
        start = time.thread_time()
        plan = scheduler.plan()
        assert plan is not None
        planned = time.thread_time()
        rank_plans(plan)
        arranged = time.thread_time()
        scheduler.commit(plan, drawn)
        times["plan"].append(planned - start)
        times["arrays"].append(arranged - planned)
        times["commit"].append(time.thread_time() - arranged)
    parts = {name: 1e6 * median(values) for name, values in times.items()}
    print(f"{options.sequences} sequences, {options.prompt_tokens} prompt tokens each")
    for name, microseconds in parts.items():
        print(f"{name:>8} {microseconds:8.0f} us")
    print(f"{'total':>8} {sum(parts.values()):8.0f} us   (scheduler: plan + commit)")


if __name__ == "__main__":
    main()
