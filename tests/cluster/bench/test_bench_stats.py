"""The figures of `moeray bench`, against values worked out by hand and by numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.cluster.bench.load import PlannedRequest
from moeray.cluster.bench.record import CUT_OFF, INTERRUPTED, MISCOUNTED, OK, Observer
from moeray.cluster.bench.stats import (
    Goodput,
    ServiceLevel,
    distribution,
    percentile,
    summarise,
)
from moeray.v1 import inference_pb2 as pb

from .bench_samples import record


def test_percentiles_of_known_values() -> None:
    values = [10.0, 20.0, 30.0, 40.0]
    assert percentile(values, 0.0) == 10.0
    assert percentile(values, 0.5) == 25.0
    assert percentile(values, 0.9) == pytest.approx(37.0)
    assert percentile(values, 1.0) == 40.0
    assert percentile([5.0], 0.99) == 5.0


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=60),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    expected = float(np.percentile(values, 100 * share))
    assert percentile(sorted(values), share) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_distribution() -> None:
    found = distribution([3.0, 1.0, 2.0])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.max) == (3, 2.0, 2.0, 3.0)
    assert distribution([]) is None


def test_latencies_of_one_request() -> None:
    one = record()
    assert one.ttft_s == 0.5
    assert one.e2e_s == 1.0
    # The last event has two tokens: 0.2 s are 0.1 s for each.
    assert one.inter_token_s == pytest.approx([0.1, 0.1, 0.1])
    assert one.mean_inter_token_s == pytest.approx(0.1)
    alone = record(event_times_s=(1.5,), event_tokens=(4,))
    assert alone.inter_token_s == []
    assert alone.mean_inter_token_s is None
    assert record(event_times_s=(), event_tokens=()).ttft_s is None


def test_summary_of_a_run() -> None:
    records = [
        record(),
        record(index=1, effort="high", due_s=2.0, started_s=2.0, ended_s=4.0, reasoning_tokens=5,
               event_times_s=(3.0, 3.5), event_tokens=(1, 1), output_tokens=2),
        record(index=2, status="UNAVAILABLE", error="gone", output_tokens=1, ended_s=3.0,
               event_times_s=(2.9,), event_tokens=(1,)),
        record(index=3, status=INTERRUPTED, output_tokens=0, event_times_s=(), event_tokens=()),
    ]  # fmt: skip
    summary = summarise(records, ServiceLevel(ttft_s=0.6, itl_s=0.2))
    assert (summary.requests, summary.completed) == (4, 2)
    assert (summary.failed, summary.interrupted) == (1, 1)
    assert summary.errors == {"UNAVAILABLE": 1}
    assert summary.wall_s == 4.0
    assert summary.output_tokens_per_s == 10 / 4
    assert summary.total_tokens_per_s == 410 / 4
    assert summary.requests_per_s == 2 / 4
    assert summary.cached_share == 0.25
    assert summary.ttft is not None and summary.ttft.p50 == pytest.approx(0.75)
    # Three tokens of 0.1 s and one of 0.5 s.
    assert summary.itl is not None and summary.itl.mean == pytest.approx(0.2)
    assert summary.start_lag is not None and summary.start_lag.max == pytest.approx(0.01)
    assert list(summary.efforts) == ["low", "high"]
    assert summary.efforts["high"].reasoning_tokens == 5
    assert summary.goodput == Goodput(requests=1, share=1 / 3, requests_per_s=1 / 4)


@pytest.mark.parametrize(
    ("level", "met"),
    [
        (ServiceLevel(), True),
        (ServiceLevel(ttft_s=0.5, itl_s=0.11, e2e_s=1.0), True),
        (ServiceLevel(ttft_s=0.49), False),
        (ServiceLevel(itl_s=0.09), False),
        (ServiceLevel(e2e_s=0.9), False),
    ],
)
def test_service_level(level: ServiceLevel, met: bool) -> None:
    assert level.is_met(record()) is met
    assert not level.is_met(record(status=CUT_OFF))


def test_a_run_without_requests() -> None:
    summary = summarise([], ServiceLevel(ttft_s=1.0))
    assert (summary.wall_s, summary.output_tokens_per_s) == (0.0, 0.0)
    assert summary.goodput == Goodput(requests=0, share=0.0, requests_per_s=0.0)
    assert summary.ttft is None


def observer() -> Observer:
    planned = PlannedRequest(
        index=4, effort="low", prompt_tokens=90, message=pb.GenerateRequest(max_output_tokens=16)
    )
    return Observer(planned=planned, due_s=1.0, started_s=1.1)


def delta(*tokens: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(delta=pb.Delta(token_ids=tokens))


def test_an_observer_counts_tokens_by_their_ids() -> None:
    seen = observer()
    started = pb.Started(prompt_tokens=88, cached_tokens=16)
    call = pb.ToolCallDelta(token_ids=[1, 2])
    usage = pb.Usage(output_tokens=5, reasoning_tokens=3, cached_tokens=32)
    finished = pb.Finished(reason=pb.FINISH_REASON_TOOL_CALL)
    assert seen.add(pb.GenerateResponse(started=started), 1.2) == 0
    assert seen.add(delta(7, 8, 9), 1.5) == 3
    assert seen.add(delta(), 1.6) == 0
    assert seen.add(pb.GenerateResponse(tool_call=call), 1.7) == 2
    seen.add(pb.GenerateResponse(usage=usage), 1.8)
    assert seen.end_of_stream() == CUT_OFF
    seen.add(pb.GenerateResponse(finished=finished), 1.8)
    assert seen.end_of_stream() == OK
    found = seen.record(OK, "", 1.9)
    assert (found.event_times_s, found.event_tokens) == ((1.5, 1.7), (3, 2))
    assert (found.prompt_tokens, found.cached_tokens) == (88, 32)
    assert (found.output_tokens, found.reasoning_tokens) == (5, 3)
    assert found.finish_reason == "tool_call"
    assert (found.index, found.planned_prompt_tokens, found.max_output_tokens) == (4, 90, 16)


def test_lost_tokens_are_noticed() -> None:
    seen = observer()
    seen.add(delta(7), 1.5)
    seen.add(pb.GenerateResponse(usage=pb.Usage(output_tokens=2)), 1.6)
    seen.add(pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP)), 1.6)
    assert seen.end_of_stream() == MISCOUNTED
