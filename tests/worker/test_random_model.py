"""Tests of machinery count an answer's tokens: the random model must not end one by chance."""

from pathlib import Path

import torch

from tests.random_model import ENDS
from tests.worker.paged_run import PagedRun

SEQUENCES = 8
TOKENS = 64
HARDLY_EVER = 1e-9
"""Of ending at a position; one vocabulary word in 200,000 at random has 5e-6."""


def test_an_answer_does_not_end_by_chance(random_model: Path) -> None:
    run = PagedRun(random_model, step_tokens=SEQUENCES * TOKENS)
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(0, 199_998, (SEQUENCES, TOKENS), generator=generator).tolist()
    for end in range(TOKENS):
        logits = run.step({str(i): [context[end]] for i, context in enumerate(contexts)})
        for row in logits.values():
            assert row.softmax(-1)[list(ENDS)].max() < HARDLY_EVER
