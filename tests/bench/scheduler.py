"""Processor time of the engine's policy in one step: one rank, all sequences decode.

Run as `python -m tests.bench.scheduler [--sequences 256] [--steps 200]`. Prints microseconds of
this thread's processor time per step, the fifth percentile and the median:

- plan: `Scheduler.plan`, which sequences run and with which blocks;
- arrays: `Planner.rank_plans`, the arrays that go to the rank;
- planning: both of these, all that comes before the rank runs;
- commit: `Scheduler.commit`, from the drawn tokens to the rows for the gateways;
- total: all of these. Nothing of the rank's own work, of the sockets or of the service is in it.

Every sequence takes one text token a step. Prompts differ, in length by up to a block, so that the
sequences fill and publish blocks of their own, at different steps, as in service.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from moeray.vocabulary.harmony_tokens import CHANNEL, MESSAGE, START
from moeray.worker.channels import ChannelAutomaton
from moeray.worker.config import EngineConfig
from moeray.worker.kv_plan import KvPlan
from moeray.worker.plan import Drawn
from moeray.worker.planner import Planner
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
WINDOW_TOKENS = 128
RULES = ChannelRules(
    turn_opening=(START, ASSISTANT),
    headers=(
        Header((CHANNEL, ANALYSIS, MESSAGE), BodyKind.ANALYSIS),
        Header((CHANNEL, FINAL, MESSAGE), BodyKind.FINAL),
    ),
)


def decoding_scheduler(sequences: int, prompt_tokens: int, steps: int) -> Scheduler:
    """A scheduler whose sequences are all in an analysis body, their prompts computed."""
    context_length = prompt_tokens + steps + 200
    config = EngineConfig(
        model=Path("none"),
        kv_tokens_per_rank=sequences * (context_length + 16),
        max_running_per_rank=sequences,
        step_tokens_per_rank=sequences * (prompt_tokens + 100),
    )
    kv = KvPlan.of(config, context_length, WINDOW_TOKENS)
    scheduler = Scheduler(config, kv, context_length=context_length, new_automaton=ChannelAutomaton)
    for key in range(sequences):
        scheduler.submit(
            EngineRequest(
                key=RequestKey(1, key),
                epoch=0,
                rank=0,
                prompt=(TEXT_TOKEN + key,) * (prompt_tokens + key % kv.block_tokens),
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


def measure(scheduler: Scheduler, sequences: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each part, step by step."""
    planner = Planner(1)
    drawn = [Drawn.plain(np.full(sequences, TEXT_TOKEN))]
    parts: dict[str, list[float]] = {
        name: [] for name in ("plan", "arrays", "planning", "commit", "total")
    }
    for _ in range(steps):
        start = time.thread_time()
        plan = scheduler.plan()
        assert plan is not None
        planned = time.thread_time()
        planner.rank_plans(plan)
        arranged = time.thread_time()
        scheduler.commit(plan, drawn)
        end = time.thread_time()
        for pool in (scheduler.ranks[0].blocks.full, scheduler.ranks[0].blocks.window):
            pool.changes.clear()  # The engine's thread takes them between steps.
        parts["plan"].append(planned - start)
        parts["arrays"].append(arranged - planned)
        parts["planning"].append(arranged - start)
        parts["commit"].append(end - arranged)
        parts["total"].append(end - start)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    scheduler = decoding_scheduler(options.sequences, options.prompt_tokens, options.steps)
    parts = measure(scheduler, options.sequences, options.steps)
    print(f"{options.sequences} decoding sequences of one rank, {options.steps} steps,")
    print(f"prompts from {options.prompt_tokens} tokens on: us of processor time per step")
    print(f"{'':>8} {'p5':>8} {'median':>8}")
    for name, seconds in parts.items():
        low, middle = 1e6 * np.percentile(seconds, (5, 50))
        print(f"{name:>8} {low:8.0f} {middle:8.0f}")


if __name__ == "__main__":
    main()
