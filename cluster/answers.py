"""The life of a request in the gateway, from the client's message to the last event.

``Answers.stream`` is that life on one screen. Whatever ends it, a place at the router is given back
and a request that still runs is cancelled at its engine at once. An engine that fails before the
client has seen anything of the answer costs a new try elsewhere, in the next epoch; later than that
it costs the answer.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Final

import structlog

from moeray.cluster.catalogue import Catalogue, ServedModel
from moeray.cluster.contracts import Placement, PlacementRequest
from moeray.cluster.engine_link import EngineLinks, RequestStream
from moeray.cluster.errors import Unavailable
from moeray.cluster.generation import GenerationRequest
from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.interceptors import Call
from moeray.cluster.router_client import RouterClient
from moeray.cluster.token_log import TokenLog
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.cluster.validation import Validator, check_length
from moeray.engine.v1 import engine_pb2
from moeray.v1 import inference_pb2 as pb

MAX_TRIES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A valid request, rendered for the model that will answer. Lengths are in tokens."""

    request: GenerationRequest
    model: ServedModel
    token_ids: list[int]


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
    ) -> None:
        self.running = 0
        self._validator = validator
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._catalogue = catalogue
        self._router = router
        self._links = links
        self._no_engine_wait_s = no_engine_wait_s
        self._keys = itertools.count(1)
        self._log = structlog.get_logger("moeray.answers")

    async def stream(
        self, message: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The events of one answer. Raises MoerayError."""
        prompt = await self.render(message, call)
        max_output_tokens = _max_output_tokens(prompt)
        key, lost_on, started = next(self._keys), list[str](), False
        self.running += 1
        try:
            for epoch in range(1, MAX_TRIES + 1):
                asked = _placement_request(prompt, max_output_tokens, call, (key, epoch), lost_on)
                submit = self._submit(prompt, max_output_tokens, (key, epoch))
                log, has_spoken = self._token_log(prompt), False
                try:
                    async with self._placed(asked, submit, lost_on) as (placement, steps):
                        cached_tokens = await steps.accepted()
                        if not started:
                            yield _started(prompt, call, placement, cached_tokens)
                        started = True
                        async for rows in steps:
                            for event in log.extend(rows):
                                has_spoken = True
                                yield event
                    break
                except Unavailable:
                    if has_spoken or len(lost_on) < epoch or epoch == MAX_TRIES:
                        raise
            if recoveries := log.recoveries:
                self._log.warning("harmony_recovered", request_id=call.request_id, **recoveries)
            for event in log.close(cached_tokens):
                yield event
        finally:
            self.running -= 1

    async def render(self, message: pb.GenerateRequest, call: Call) -> Prompt:
        """Validate and render, off the event loop: big prompts take long. Raises MoerayError."""
        request = await asyncio.to_thread(self._validator.validate, message)
        wait_s = call.remaining_s(self._no_engine_wait_s)
        model = await self._catalogue.wait_for(request.model, wait_s)
        token_ids = await asyncio.to_thread(self._renderer.render, request)
        return Prompt(request=request, model=model, token_ids=token_ids)

    @asynccontextmanager
    async def _placed(
        self, asked: PlacementRequest, submit: engine_pb2.Submit, lost_on: list[str]
    ) -> AsyncIterator[tuple[Placement, RequestStream]]:
        """One try: placed and submitted; at the end cancelled if it still runs, and released."""
        try:
            placement = await self._router.place(asked)
            try:
                submit.rank = placement.rank
                steps = await self._links.submit(placement.engine_id, submit)
                with closing(steps):
                    yield placement, steps
            except Unavailable as error:
                lost_on.append(placement.engine_id)
                self._log.warning("try_failed", request_id=asked.request_id, reason=str(error))
                raise
        finally:
            self._router.release(asked.request_id)

    def _submit(
        self, prompt: Prompt, max_output_tokens: int, request_try: tuple[int, int]
    ) -> engine_pb2.Submit:
        sampling = prompt.request.sampling
        return engine_pb2.Submit(
            request_key=request_try[0],
            epoch=request_try[1],
            prompt_token_ids=prompt.token_ids,
            max_output_tokens=max_output_tokens,
            sampling=engine_pb2.Sampling(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed,
            ),
            channel_rules=self._renderer.channel_rules(prompt.request),
            priority=prompt.request.priority,
        )

    def _token_log(self, prompt: Prompt) -> TokenLog:
        return TokenLog(
            self._tokenizer.token_bytes,
            prompt_tokens=len(prompt.token_ids),
            include_token_ids=prompt.request.include_token_ids,
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


def _placement_request(
    prompt: Prompt,
    max_output_tokens: int,
    call: Call,
    request_try: tuple[int, int],
    lost_on: list[str],
) -> PlacementRequest:
    key, epoch = request_try
    return PlacementRequest(
        # The client chose its request id, so that alone may not be unique.
        request_id=f"{call.request_id}#{key}.{epoch}",
        model=prompt.model.name,
        prompt_tokens=len(prompt.token_ids),
        max_output_tokens=max_output_tokens,
        priority=prompt.request.priority,
        conversation_id=prompt.request.conversation_id,
        deadline=call.deadline,
        avoid_engine_ids=tuple(lost_on),
    )


def _started(
    prompt: Prompt, call: Call, placement: Placement, cached_tokens: int
) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        started=pb.Started(
            request_id=call.request_id,
            model=prompt.model.name,
            engine_id=placement.engine_id,
            rank=placement.rank,
            prompt_tokens=len(prompt.token_ids),
            cached_tokens=cached_tokens,
        )
    )
