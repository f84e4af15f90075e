"""The life of a request in the gateway, from the client's message to the last event.

``Answers.answer`` is that life on one screen. Whatever ends it, a place at the router is given back
and a request that still runs is cancelled at its engine at once. An engine that fails before the
client has seen anything of the answer costs a new try elsewhere, in the next epoch; later than that
it costs the answer.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from typing import Final

import structlog

from moeray.cluster.answer_observer import ObserveAnswer
from moeray.cluster.catalogue import Catalogue, ServedModel
from moeray.cluster.contracts import Placement, PlacementRequest
from moeray.cluster.engine_link import EngineLinks
from moeray.cluster.errors import Unavailable
from moeray.cluster.failed_tries import FailedTries
from moeray.cluster.generation import GenerationRequest
from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.interceptors import Call
from moeray.cluster.parallel_answers import answer_seed, merged
from moeray.cluster.request_stream import RequestStream
from moeray.cluster.router_client import RouterClient
from moeray.cluster.stop_strings import StopStrings
from moeray.cluster.token_log import TokenLog
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.cluster.validation import Validator, check_length
from moeray.engine.v1 import engine_pb2
from moeray.v1 import inference_pb2 as pb
from moeray.vocabulary.block_hash import block_hashes

MAX_TRIES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A valid request, rendered for the model that will answer."""

    request: GenerationRequest
    model: ServedModel
    token_ids: list[int]
    block_hashes: tuple[bytes, ...]
    """Of its whole KV blocks."""
    stop_strings: StopStrings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One answer that was asked for. ``key`` names it in this gateway."""

    prompt: Prompt
    max_output_tokens: int
    call: Call
    key: int
    seed: int


class Answers:
    """Makes answers with one tokenizer over one gateway's router and engines."""

    def __init__(
        self,
        *,
        validator: Validator,
        tokenizer: HarmonyTokenizer,
        renderer: HarmonyRenderer,
        catalogue: Catalogue,
        router: RouterClient,
        links: EngineLinks,
        no_engine_wait_s: float,
        observe: ObserveAnswer,
    ) -> None:
        self.running = 0
        self._validator = validator
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._catalogue = catalogue
        self._router = router
        self._links = links
        self._no_engine_wait_s = no_engine_wait_s
        self._observe = observe
        self._keys = itertools.count(1)
        self._log = structlog.get_logger("moeray.answers")

    async def stream(
        self, message: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The events of all answers to one request. Raises MoerayError."""
        prompt = await self.render(message, call)
        max_output_tokens = _max_output_tokens(prompt)
        asked = [
            _Asked(
                prompt=prompt,
                max_output_tokens=max_output_tokens,
                call=call,
                key=next(self._keys),
                seed=answer_seed(prompt.request.sampling.seed, index),
            )
            for index in range(prompt.request.n)
        ]
        self.running += 1
        try:
            async with aclosing(merged([self.answer(each) for each in asked])) as events:
                async for event in events:
                    yield event
        finally:
            self.running -= 1

    async def answer(self, asked: _Asked) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The events of one answer."""
        failed, started = FailedTries(), False
        request, model = asked.prompt.request, asked.prompt.model
        observer = self._observe(asked.call, model.name, request.reasoning_effort)
        for epoch in range(1, MAX_TRIES + 1):
            log, has_spoken = self._token_log(asked.prompt), False
            try:
                async with self._placed(asked, epoch, failed) as (placement, steps):
                    observer.placed(placement.engine_id)
                    cached_tokens = await steps.admission()
                    if not started:
                        yield _started(asked, placement, cached_tokens)
                    started = True
                    async for rows in steps:
                        events = log.extend(rows)
                        if log.is_over:  # known before a slow client has taken the last events
                            steps.close()
                        for event in events:
                            observer.progress(log.tokens)
                            has_spoken = True
                            yield event
                break
            except Unavailable:
                if has_spoken or len(failed) < epoch or epoch == MAX_TRIES:
                    raise
                observer.retried()
        if recoveries := log.recoveries:
            self._log.warning("harmony_recovered", **recoveries)
        usage, finished = log.close(cached_tokens)
        observer.finished(usage.usage, finished.finished.reason, recoveries)
        yield usage
        yield finished

    async def render(self, message: pb.GenerateRequest, call: Call) -> Prompt:
        """Validate and render, off the event loop: big prompts take long. Raises MoerayError."""
        request = await asyncio.to_thread(self._validator.validate, message)
        wait_s = call.time_left_s(self._no_engine_wait_s)
        model = await self._catalogue.wait_for(request.model, wait_s)
        return await asyncio.to_thread(self._render, request, model)

    def _render(self, request: GenerationRequest, model: ServedModel) -> Prompt:
        token_ids = self._renderer.render(request)
        return Prompt(
            request=request,
            model=model,
            token_ids=token_ids,
            block_hashes=tuple(block_hashes(token_ids, model.block_tokens, request.cache_salt)),
            stop_strings=StopStrings(request.stop),
        )

    @asynccontextmanager
    async def _placed(
        self, asked: _Asked, epoch: int, failed: FailedTries
    ) -> AsyncIterator[tuple[Placement, RequestStream]]:
        """One try: placed and submitted; at the end cancelled if it still runs, and released."""
        avoided = failed.avoided(self._router.engines, asked.prompt.model.name)
        wanted = _placement_request(asked, epoch, avoided)
        try:
            placement = await self._router.place(wanted)
            try:
                submit = self._submit(asked, epoch, placement.rank)
                steps = await self._links.submit(placement.engine_id, submit)
                with closing(steps):
                    yield placement, steps
            except Unavailable as error:
                failed.note(placement.engine_id, error)
                self._log.warning("try_failed", engine_id=placement.engine_id, reason=str(error))
                raise
        finally:
            self._router.release(wanted.request_id)

    def _submit(self, asked: _Asked, epoch: int, rank: int) -> engine_pb2.Submit:
        request, deadline = asked.prompt.request, asked.call.deadline
        time_left_s = None if deadline is None else max(0.0, deadline - time.time())
        return engine_pb2.Submit(
            request_key=asked.key,
            epoch=epoch,
            rank=rank,
            prompt_token_ids=asked.prompt.token_ids,
            max_output_tokens=asked.max_output_tokens,
            sampling=_sampling(request, asked.seed),
            channel_rules=self._renderer.channel_rules(request),
            priority=request.priority,
            cache_salt=request.cache_salt,
            time_left_ms=None if time_left_s is None else int(time_left_s * 1e3),
            request_id=asked.call.request_id,
        )

    def _token_log(self, prompt: Prompt) -> TokenLog:
        return TokenLog(
            self._tokenizer.token_bytes,
            prompt.request,
            prompt.stop_strings,
            prompt_tokens=len(prompt.token_ids),
        )


def _max_output_tokens(prompt: Prompt) -> int:
    """The limit on output tokens. Raises InvalidRequest where the prompt leaves no room."""
    return check_length(
        len(prompt.token_ids),
        prompt.request,
        context_length=prompt.model.context_length,
        max_sequence_tokens=prompt.model.max_sequence_tokens,
        default_max_output_tokens=prompt.model.default_max_output_tokens,
    )


def _placement_request(asked: _Asked, epoch: int, avoided: tuple[str, ...]) -> PlacementRequest:
    prompt, call = asked.prompt, asked.call
    return PlacementRequest(
        # The client chose its request id, so that alone may not be unique.
        request_id=f"{call.request_id}#{asked.key}.{epoch}",
        model=prompt.model.name,
        prompt_tokens=len(prompt.token_ids),
        max_output_tokens=asked.max_output_tokens,
        priority=prompt.request.priority,
        conversation_id=prompt.request.conversation_id,
        deadline=call.deadline,
        avoid_engine_ids=avoided,
        block_hashes=prompt.block_hashes,
    )


def _sampling(request: GenerationRequest, seed: int) -> engine_pb2.Sampling:
    sampling = request.sampling
    return engine_pb2.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=seed,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
        top_logprobs=request.top_logprobs,
    )


def _started(asked: _Asked, placement: Placement, cached_tokens: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        started=pb.Started(
            request_id=asked.call.request_id,
            model=asked.prompt.model.name,
            engine_id=placement.engine_id,
            rank=placement.rank,
            prompt_tokens=len(asked.prompt.token_ids),
            cached_tokens=cached_tokens,
        )
    )
