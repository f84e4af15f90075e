"""Slips: the first try ends wrong, the check shows it, and what is learned is all true."""

import random

import pytest

from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.tiny.arithmetic import draw_addition, draw_multiplication, draw_subtraction
from moeray.cluster.tokenizer import HarmonyTokenizer
from tests.cluster.tiny.worked_lines import assert_true, last_spelled
from tests.tiny.samples import SampleWriter
from tests.tiny.slips import drawn_slip

DRAWS = (draw_addition, draw_subtraction, draw_multiplication)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_slip_is_found_and_mended(draw: object) -> None:
    found = 0
    for seed in range(300):
        rng = random.Random(seed)
        problem = draw(rng)
        thinking = problem.reply.thinking
        slip = drawn_slip(thinking, rng)
        if slip is None:
            continue
        found += 1
        right = last_spelled(thinking.steps)
        assert last_spelled(slip.wrong) != right
        check, again = slip.mended.split(" Again:\n")
        got, expected = check.splitlines()[-1].removeprefix("That is ").split(", ")[:2]
        assert got != expected.removeprefix("not ")
        assert check.endswith("so it is wrong.")
        assert again == thinking.steps
        assert_true(slip.mended)
    assert found > 200


def test_the_mistake_is_not_learned() -> None:
    tokenizer = HarmonyTokenizer.load()
    writer = SampleWriter(tokenizer)
    rng = random.Random(3)
    problem = draw_addition(rng)
    slip = drawn_slip(problem.reply.thinking, rng)
    (turn,) = writer.turns(problem, ReasoningEffort.HIGH)
    sample = writer.slipped(turn, slip)
    learned = [t for t, is_learned in zip(sample.tokens, sample.learned, strict=True) if is_learned]
    text = tokenizer.encoding.decode(sample.tokens)
    assert text.endswith(tokenizer.encoding.decode(learned))
    assert tokenizer.encoding.decode(learned).startswith("Check: ")
    assert f"<|message|>{slip.wrong}Check: " in text
    assert sample.tokens[-1] == turn.body[-1]
