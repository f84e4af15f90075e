"""A real cluster as clients see it: Ray, a gateway, a router and one engine of two ranks."""

import concurrent.futures
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from moeray.cluster.client import Client, user_request
from moeray.cluster.whole_answer import WholeAnswer
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc
from tests.integration.serving import Server, run, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

LONG = 4000


@pytest.fixture(scope="module")
def server(random_model: Path) -> Iterator[Server]:
    arguments = ("--model", str(random_model), "--ranks", "2")
    with Server(*arguments, MOERAY_DRAIN_TIMEOUT_S="20") as running:
        yield running
        assert running.stop() == 0, running.output


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.target) as connected:
        yield connected


@pytest.fixture
def stub(server: Server) -> Iterator[inference_pb2_grpc.InferenceServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def ask(client: Client, request: pb.GenerateRequest) -> pb.Answer:
    return ask_whole(client, request).answers[0]


def ask_whole(client: Client, request: pb.GenerateRequest) -> pb.CompleteResponse:
    answer = WholeAnswer()
    for event in client.generate(request, timeout_s=120):
        answer.add(event)
    return answer.response


def running_requests(stub: inference_pb2_grpc.InferenceServiceStub) -> int:
    return stub.GetServerInfo(pb.GetServerInfoRequest()).running_requests


@pytest.mark.parametrize(("effort", "budget"), [("low", 16), ("medium", 48), ("high", 96)])
def test_an_answer_at_each_effort(client: Client, effort: str, budget: int) -> None:
    limit = budget + 50  # room enough that the limit does not end the analysis first
    request = user_request(
        "hi",
        effort=effort,
        thinking_budget=budget,
        max_output_tokens=limit,
        seed=1,  # one that opens with analysis
        current_date="2026-01-01",
    )
    assert f"Reasoning: {effort}" in client.count_tokens(request).prompt
    answer = ask(client, request)
    usage = answer.usage
    assert usage.reasoning_tokens == budget
    assert answer.analysis
    assert answer.final
    assert usage.output_tokens == limit
    assert usage.output_tokens == sum(
        (usage.reasoning_tokens, usage.final_tokens, usage.control_tokens)
    )
    assert answer.finished.reason == pb.FINISH_REASON_LENGTH


def test_a_budget_of_zero_answers_at_once(client: Client) -> None:
    answer = ask(client, user_request("hi", thinking_budget=0, max_output_tokens=16))
    assert answer.usage.reasoning_tokens == 0
    assert answer.usage.final_tokens == 16 - 3
    assert answer.final


def test_the_same_seed_gives_the_same_answer_in_any_company(client: Client) -> None:
    request = user_request("hi", thinking_budget=8, max_output_tokens=40, seed=7)
    alone = ask(client, request)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        others = [
            user_request(f"other {n}", thinking_budget=n, max_output_tokens=30, seed=n)
            for n in range(5)
        ]
        company = [pool.submit(ask, client, other) for other in others]
        together = pool.submit(ask, client, request).result()
        for other in company:
            other.result()
    assert (together.analysis, together.final) == (alone.analysis, alone.final)


def test_health_and_reflection(server: Server) -> None:
    with grpc.insecure_channel(server.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "moeray.v1.InferenceService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert {"moeray.v1.InferenceService", "grpc.health.v1.Health"} <= set(services)


def test_models_and_server_info(
    stub: inference_pb2_grpc.InferenceServiceStub, random_model: Path
) -> None:
    (model,) = stub.ListModels(pb.ListModelsRequest()).models
    assert (model.name, model.ranks, model.engines) == (random_model.name, 2, 1)
    assert (model.context_length, model.vocabulary_size) == (131072, 201088)
    assert stub.GetModel(pb.GetModelRequest(name=model.name)).model == model
    assert stub.GetServerInfo(pb.GetServerInfoRequest()).version


def test_complete_is_generate_in_one_message(
    client: Client, stub: inference_pb2_grpc.InferenceServiceStub
) -> None:
    request = user_request("hi", thinking_budget=4, max_output_tokens=24, seed=3)
    whole = stub.Complete(pb.CompleteRequest(generation=request))
    streamed = ask_whole(client, request)
    streamed.request_id = whole.request_id
    # The second finds the prompt of the first.
    streamed.answers[0].usage.cached_tokens = whole.answers[0].usage.cached_tokens
    assert whole == streamed


def test_cancelling_frees_the_request(
    client: Client, stub: inference_pb2_grpc.InferenceServiceStub
) -> None:
    call = stub.Generate(user_request("hi", max_output_tokens=LONG))
    assert next(call).WhichOneof("event") == "started"
    assert running_requests(stub) == 1
    call.cancel()
    wait_until(lambda: running_requests(stub) == 0, 5, "the request is gone")
    ask(client, user_request("hi", thinking_budget=0, max_output_tokens=16))


def test_a_deadline_ends_the_request(stub: inference_pb2_grpc.InferenceServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as ended:
        for _ in stub.Generate(user_request("hi", max_output_tokens=LONG), timeout=1.0):
            pass
    assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: running_requests(stub) == 0, 5, "the request is gone")


def test_bad_input_disturbs_nobody(stub: inference_pb2_grpc.InferenceServiceStub) -> None:
    good = stub.Generate(user_request("hi", thinking_budget=8, max_output_tokens=200, seed=5))
    assert next(good).WhichOneof("event") == "started"
    bad = [
        (pb.GenerateRequest(), "messages"),
        (user_request("hi", temperature=3.0), "sampling.temperature"),
        (pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_USER)]), "messages[0].content"),
        (user_request("x " * 140_000), "messages"),
    ]
    for request, field in bad:
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Generate(request))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert field in violated_fields(refused.value)
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Generate(user_request("x" * (10 << 20))))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    answer = WholeAnswer()
    for event in good:
        answer.add(event)
    assert answer.first.usage.output_tokens == 200


def violated_fields(error: grpc.RpcError) -> set[str]:
    status = rpc_status.from_call(error)
    assert status is not None
    details = error_details_pb2.BadRequest()
    assert any(detail.Unpack(details) for detail in status.details)
    return {violation.field for violation in details.field_violations}


def test_generate_command(server: Server) -> None:
    arguments = ("hi", "--effort", "low", "--thinking-budget", "4", "--max-output-tokens", "20")
    said = run("generate", *arguments, "--target", server.target, "--json")
    assert said.returncode == 0, said.stderr
    (answer,) = json.loads(said.stdout)["answers"]
    assert answer["usage"]["reasoning_tokens"] <= 4
    assert answer["finished"]["reason"] == "FINISH_REASON_LENGTH"
    assert answer["final"]
    shown = run("generate", *arguments, "--target", server.target, "--show-analysis")
    assert "[final]\n" in shown.stdout
    assert "final tokens; ended by length" in shown.stderr


def test_a_second_server_on_the_port_is_refused(server: Server, client: Client) -> None:
    port = server.target.rpartition(":")[2]
    second = run("serve", "--port", port)
    assert second.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken by another Moeray cluster" in second.stderr
    ask(client, user_request("hi", thinking_budget=0, max_output_tokens=16))


def test_a_killed_rank_ends_its_streams_with_a_reason_and_is_replaced(
    server: Server, client: Client, stub: inference_pb2_grpc.InferenceServiceStub
) -> None:
    calls = [stub.Generate(user_request("hi", max_output_tokens=LONG)) for _ in range(4)]
    for call in calls:
        while next(call).WhichOneof("event") != "delta":
            pass
    victim = server.children("ray::RankActor")[0]
    victim.send_signal(signal.SIGKILL)
    for call in calls:
        with pytest.raises(grpc.RpcError) as lost:
            for _ in call:
                pass
        assert lost.value.code() == grpc.StatusCode.UNAVAILABLE
        status = rpc_status.from_call(lost.value)
        assert status is not None
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
    # Asked at once, the question waits for the new group instead of failing.
    answer = ask(client, user_request("hi", thinking_budget=4, max_output_tokens=20))
    assert answer.final


def test_a_bad_checkpoint_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    refused = run("serve", "--port", "0", "--model", str(tmp_path))
    assert refused.returncode == 1
    assert "config.json" in refused.stderr
    assert "GptOssForCausalLM" in refused.stderr
    assert "starting Ray" not in refused.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ranks", "3"), "ranks: must be 1, 2, 4 or 8"),
        (("--device", "tpu"), "device"),
        (("--device", "cuda"), "GPUs"),
        (("--config", "none.yaml"), "none.yaml is no file"),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_wrong_settings_are_refused_by_name(arguments: tuple[str, str], said: str) -> None:
    refused = run("serve", "--port", "0", *arguments)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert refused.stderr.startswith("moeray: ")
