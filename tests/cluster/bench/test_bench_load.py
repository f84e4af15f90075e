"""The workload of `moeray bench`: one seed, one workload; arrivals that follow their rate."""

from itertools import islice, pairwise
from random import Random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.cluster.bench.load import (
    Calibration,
    FixedLength,
    LognormalLength,
    PlannedRequest,
    Poisson,
    Ramp,
    Shape,
    UniformLength,
    Workload,
)
from moeray.cluster.bench.text import passage
from moeray.v1 import inference_pb2 as pb

CALIBRATION = Calibration(overhead=70.0, prefix_overhead=10.0, tokens_per_word=1.2)


def shape(**changes: object) -> Shape:
    fields: dict[str, object] = {
        "seed": 7,
        "prompt_tokens": UniformLength(100, 400),
        "output_tokens": UniformLength(16, 64),
        "efforts": {"low": 0.5, "medium": 0.3, "high": 0.2},
        "prefix_tokens": 0,
        "prefixes": 1,
        "temperature": 0.5,
        "natural": False,
        "model": "",
    }
    return Shape(**fields | changes)  # type: ignore[arg-type]


def drawn(count: int, phase: str = "measured", **changes: object) -> list[PlannedRequest]:
    workload = Workload(shape(**changes), CALIBRATION, phase)
    return [workload.request(index) for index in range(count)]


def test_the_seed_decides_everything() -> None:
    assert drawn(20) == drawn(20)
    assert drawn(20) != drawn(20, seed=8)
    assert drawn(20) != drawn(20, phase="warmup")
    backwards = Workload(shape(), CALIBRATION, "measured")
    assert [backwards.request(index) for index in reversed(range(20))][::-1] == drawn(20)


def test_requests_say_what_was_asked_for() -> None:
    for request in drawn(50):
        message = request.message
        assert 16 <= message.max_output_tokens <= 64
        assert 100 <= request.prompt_tokens <= 400
        assert message.ignore_eos and message.include_token_ids
        assert message.sampling.temperature == 0.5
        words = len(message.messages[-1].content.split())
        assert abs(70 + 1.2 * words - request.prompt_tokens) <= 1.2
    assert not drawn(1, natural=True)[0].message.ignore_eos
    assert not drawn(1, temperature=None)[0].message.sampling.HasField("temperature")
    assert len({request.message.sampling.seed for request in drawn(50)}) == 50


def test_efforts_are_mixed_by_weight() -> None:
    efforts = [request.effort for request in drawn(2000)]
    assert efforts.count("low") / 2000 == pytest.approx(0.5, abs=0.04)
    assert efforts.count("high") / 2000 == pytest.approx(0.2, abs=0.04)
    low = next(request for request in drawn(50) if request.effort == "low")
    assert low.message.reasoning_effort == pb.REASONING_EFFORT_LOW


def test_each_prompt_begins_with_one_of_the_prefixes() -> None:
    requests = drawn(60, prefix_tokens=130, prefixes=3)
    texts = {request.message.messages[0].content for request in requests}
    assert len(texts) == 3
    for text in texts:
        assert len(text.split()) == 100
    assert all(request.message.messages[0].role == pb.ROLE_SYSTEM for request in requests)
    assert len({request.message.messages[1].content for request in requests}) == 60
    assert all(230 <= request.prompt_tokens <= 530 for request in requests)


def test_output_limits_are_never_below_what_servers_take() -> None:
    assert all(
        request.message.max_output_tokens >= 16
        for request in drawn(200, output_tokens=LognormalLength(20, 1.0))
    )


def test_lognormal_lengths_have_the_mean_that_was_given() -> None:
    random = Random(1)
    lengths = [LognormalLength(300.0, 0.8).draw(random) for _ in range(20_000)]
    assert mean(lengths) == pytest.approx(300, rel=0.03)
    assert len(set(lengths)) > 100
    assert {FixedLength(5).draw(random) for _ in range(9)} == {5}


@given(st.integers(1, 3000), st.integers(0, 10**6))
@settings(max_examples=50)
def test_passages_have_as_many_words_as_asked(words: int, seed: int) -> None:
    assert len(passage(Random(seed), words).split()) == max(words, 2)


def test_poisson_arrivals_have_exponential_gaps() -> None:
    moments = list(islice(Poisson(20.0).arrivals(3), 20_000))
    gaps = [after - before for before, after in pairwise(moments)]
    assert mean(gaps) == pytest.approx(1 / 20, rel=0.03)
    # Memoryless: a gap exceeds its mean with probability 1/e.
    assert mean(gap > 1 / 20 for gap in gaps) == pytest.approx(0.3679, abs=0.015)
    assert moments[:9] == list(islice(Poisson(20.0).arrivals(3), 9))
    assert moments[:9] != list(islice(Poisson(20.0).arrivals(4), 9))


@pytest.mark.parametrize("ramp", [Ramp(0, 40, 200), Ramp(40, 0, 200), Ramp(10, 30, 200)])
def test_ramps_follow_their_rate(ramp: Ramp) -> None:
    moments = list(ramp.arrivals(5))
    assert moments == sorted(moments)
    assert moments[-1] <= ramp.seconds
    for part in range(4):
        begin, end = part * 50, (part + 1) * 50
        middle = ramp.first + (ramp.last - ramp.first) * (begin + end) / 2 / ramp.seconds
        came = sum(begin <= moment < end for moment in moments)
        assert came == pytest.approx(50 * middle, abs=5 * (50 * middle) ** 0.5)


def test_a_flat_ramp_is_a_poisson_process() -> None:
    flat = list(Ramp(20, 20, 50).arrivals(1))
    assert flat == pytest.approx([m for m in islice(Poisson(20).arrivals(1), 5000) if m <= 50])


async def test_calibration_finds_the_line_that_the_server_counts_by() -> None:
    async def count(message: pb.GenerateRequest) -> int:
        words = sum(len(part.content.split()) for part in message.messages)
        return 70 + 10 * (len(message.messages) - 1) + 2 * words

    calibration = await Calibration.measure(shape(), count)
    assert calibration == Calibration(overhead=70.0, prefix_overhead=10.0, tokens_per_word=2.0)
    assert calibration.prompt_words(270) == 100
    assert calibration.prefix_words(30) == 10
    assert calibration.prompt_words(5) == 1
