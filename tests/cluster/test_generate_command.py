"""``moeray generate`` against a gateway with a fake engine: what its flags ask, what it prints."""

import asyncio
import json

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from moeray.cluster.cli import app

from .fake_engine import FakeEngine, Script
from .running_gateway import ANSWER, RunningGateway, running_gateway, said


async def generate(gateway: RunningGateway, *arguments: str) -> Result:
    command = ["generate", "hi", "--target", gateway.target, *arguments]
    # The gateway of this process would log into the command's output.
    with capture_logs():
        return await asyncio.to_thread(CliRunner().invoke, app, command)


async def test_flags_become_the_request() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    flags = (
        "--top-k 9 --min-p 0.1 --repetition-penalty 1.5 --presence-penalty -0.5 --seed 3"
        " --frequency-penalty 0.25 --logit-bias 7=-100 --logit-bias 9=1.5 --logprobs 2"
        " --stop-token-id 4 --stop-token-id 9 --ignore-eos --min-output-tokens 12 --cache-salt mine"
    )
    async with running_gateway(engine) as gateway:
        result = await generate(gateway, *flags.split(), "--timeout", "30")
    assert result.exit_code == 0, result.output
    (submit,) = engine.submits
    sampling, rules = submit.sampling, submit.channel_rules
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (9, 0.1, 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-0.5, 0.25)
    assert dict(sampling.logit_bias) == {7: -100.0, 9: 1.5}
    assert (sampling.seed, sampling.top_logprobs) == (3, 2)
    assert (list(rules.stop_token_ids), rules.ignore_eos) == ([4, 9], True)
    assert (rules.min_output_tokens, submit.cache_salt) == (12, "mine")
    assert 20_000 < submit.time_left_ms < 31_000  # grpc rounds deadlines up


async def test_flags_that_are_not_given_are_left_to_the_server() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    async with running_gateway(engine) as gateway:
        await generate(gateway)
    sampling = engine.submits[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.repetition_penalty) == (1.0, 1.0, 1.0)
    assert not sampling.HasField("top_logprobs")


async def test_stop_strings_end_the_answer_and_are_named() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    async with running_gateway(engine) as gateway:
        result = await generate(gateway, "--stop", "never", "--stop", "naïve")
    assert result.stdout == "It is four, \n"
    assert "ended by stop string 'naïve'" in result.stderr


async def test_answers_are_printed_in_turn() -> None:
    scripts = [Script(said(("final", text)), step_s=0.001) for text in ("a b c d e", "f g", "h")]
    engine = FakeEngine("e1", scripts=scripts)
    async with running_gateway(engine) as gateway:
        result = await generate(gateway, "--n", "3")
    assert result.stdout.splitlines() == [
        *["[answer 0]", "a b c d e"],
        *["[answer 1]", "f g"],
        *["[answer 2]", "h"],
    ]
    assert [line.split(":")[0] for line in result.stderr.splitlines() if "answer" in line] == [
        *["answer 0", "answer 1", "answer 2"]
    ]


async def test_logprobs_are_shown_token_by_token() -> None:
    engine = FakeEngine("e1", scripts=[Script(said(("final", "It's 🙂")), logprobs=True)] * 2)
    async with running_gateway(engine) as gateway:
        result = await generate(gateway, "--logprobs", "2")
        as_json = await generate(gateway, "--logprobs", "2", "--json")
    shown = result.stdout.splitlines()
    assert shown[0] == "It's 🙂"
    assert shown[1].split() == ['"It\'s"', "-0.3750", '"It\'s"', "-0.38", "'2'", "-99.00"]
    (answer,) = json.loads(as_json.stdout)["answers"]
    assert len(answer["logprobs"]) == len(shown) - 1
    assert answer["finished"]["reason"] == "FINISH_REASON_STOP"


@pytest.mark.parametrize(
    ("arguments", "said_"),
    [
        (("--logit-bias", "7"), "'7' is not ID=VALUE"),
        (("--logit-bias", "a=1"), "'a=1' is not ID=VALUE"),
        (("--logit-bias", "-1=1"), "-1 is no token id"),
        (("--n", "17"), "--n"),
        (("--logprobs", "21"), "--logprobs"),
        (("--stop-token-id", "-1"), "--stop-token-id"),
        (("--presence-penalty", "3"), "--presence-penalty"),
    ],
)
def test_wrong_flags_are_named(arguments: tuple[str, ...], said_: str) -> None:
    result = CliRunner().invoke(app, ["generate", "hi", *arguments])
    assert result.exit_code == 2
    assert said_ in result.stderr
