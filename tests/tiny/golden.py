"""Writes the golden transcripts of the embedded model: ``python -m tests.tiny.golden FOLDER``.

Takes, of each task, the first held-out problem whose answer is right and whose margins are wide, at
an effort that changes from task to task, or at high effort where there is none; of one task, all
efforts. Run it after training, and look at what changed.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.tiny.problem import Problem
from tests.tiny.transcripts import GOLDEN, Transcriber, held_out, request_of

CANDIDATES = 400
OF_EACH_TASK = 4
TASK_AT_ALL_EFFORTS = "extremes"
WIDE = 0.3
"""Wider than what the test asks for: other machines round otherwise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    transcriber = Transcriber(parser.parse_args().model)
    chosen = list(_candidates())
    requests = [request_of(problem, effort) for _, problem, effort in chosen]
    answers = transcriber.answers(requests)
    golden: dict[str, dict[str, str | int]] = {}
    for (index, problem, effort), request, answer in zip(chosen, requests, answers, strict=True):
        text = transcriber.text(answer)
        all_efforts = problem.task == TASK_AT_ALL_EFFORTS
        slot = f"{problem.task} {effort.value}" if all_efforts else problem.task
        if slot in golden or not _is_right(problem, text):
            continue
        prompt = transcriber.prompt(request)
        if transcriber.least_margin(prompt, answer) >= WIDE:
            golden[slot] = {
                "index": index,
                "task": problem.task,
                "effort": effort.value,
                "prompt": transcriber.text(prompt),
                "answer": text,
            }
    lines = json.dumps(list(golden.values()), indent=2, ensure_ascii=False)
    GOLDEN.write_text(lines + "\n", encoding="utf-8")
    print(f"{len(golden)} transcripts in {GOLDEN}")


def _candidates() -> Iterator[tuple[int, Problem, ReasoningEffort]]:
    """A few problems of each task, at the efforts that may be taken of it, better ones first."""
    efforts = list(ReasoningEffort)
    drawn: dict[str, list[tuple[int, Problem]]] = {}
    for index, problem in enumerate(held_out(CANDIDATES)):
        drawn.setdefault(problem.task, []).append((index, problem))
    for place, (task, found) in enumerate(drawn.items()):
        own = {efforts[place % len(efforts)], ReasoningEffort.HIGH}
        if task == TASK_AT_ALL_EFFORTS:
            own = set(efforts)
        for effort in filter(own.__contains__, efforts):
            for index, problem in found[:OF_EACH_TASK]:
                yield index, problem, effort


def _is_right(problem: Problem, text: str) -> bool:
    if problem.call is not None:
        return f"to=functions.{problem.call.name}<|channel|>" in text
    return text.endswith(f"<|channel|>final<|message|>{problem.reply.final}<|return|>")


if __name__ == "__main__":
    main()
