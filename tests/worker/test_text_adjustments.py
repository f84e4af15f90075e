"""What a sequence keeps for bias and penalties, counted as its tokens come."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moeray.vocabulary.harmony_tokens import END, FIRST_SPECIAL
from moeray.worker.request import SamplingParams
from moeray.worker.text_adjustments import TextAdjustments

TOKENS = st.lists(st.sampled_from([0, 1, 2, 5, FIRST_SPECIAL - 1, FIRST_SPECIAL, END]), max_size=9)


def params(**options: object) -> SamplingParams:
    return SamplingParams(temperature=1, top_p=1, top_k=0, seed=0, **options)  # type: ignore[arg-type]


def test_only_who_asks_has_any() -> None:
    assert TextAdjustments.of(params(min_p=0.5, top_logprobs=3), prompt_tokens=3) is None
    for options in (
        {"logit_bias": ((1, 2.0),)},
        {"repetition_penalty": 0.9},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
    ):
        assert TextAdjustments.of(params(**options), prompt_tokens=3) is not None


def test_bias_alone_counts_nothing() -> None:
    adjustments = TextAdjustments(params(logit_bias=((4, 2.5), (9, -1.0))), prompt_tokens=1)
    assert adjustments.bias_ids.tolist() == [4, 9]
    assert adjustments.bias.tolist() == [2.5, -1.0]
    assert adjustments.bias.dtype == np.float32
    assert [len(part) for part in adjustments.penalised([4, 5])] == [0, 0]


@given(prompt=TOKENS, parts=st.lists(TOKENS, min_size=1, max_size=4), repetition=st.booleans())
def test_counts_are_those_of_all_tokens_so_far(
    prompt: list[int], parts: list[list[int]], repetition: bool
) -> None:
    options = {"repetition_penalty": 1.5} if repetition else {"presence_penalty": 1.0}
    adjustments = TextAdjustments(params(**options), prompt_tokens=len(prompt))
    tokens = list(prompt)
    for part in parts:
        tokens += part
        ids, counts = adjustments.penalised(tokens)
        output = Counter(token for token in tokens[len(prompt) :] if token < FIRST_SPECIAL)
        asked = {token for token in prompt if token < FIRST_SPECIAL and repetition} | set(output)
        assert len(ids) == len(set(ids.tolist()))
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {
            t: output[t] for t in asked
        }
        assert ids.dtype == counts.dtype == np.int32
