"""What one answer has said: its tokens parsed into events, and how they count.

Stop strings end the answer here, in its final message: what is behind them is neither sent nor
counted, even where the engine has already made it. Log-probabilities go out with the text of their
token; tokens that stand for no text of a body (headers, enders, stop strings, stop tokens) have
none.
"""

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Final

from moeray.cluster.generation import Channel, GenerationRequest
from moeray.cluster.harmony_parser import (
    Event,
    HarmonyParser,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from moeray.cluster.stop_strings import StopFilter, StopStrings
from moeray.engine.v1 import engine_pb2
from moeray.v1 import inference_pb2 as pb
from moeray.vocabulary.harmony_tokens import FIRST_SPECIAL

_CHANNELS: Final = {
    Channel.ANALYSIS: pb.CHANNEL_ANALYSIS,
    Channel.COMMENTARY: pb.CHANNEL_COMMENTARY,
    Channel.FINAL: pb.CHANNEL_FINAL,
    Channel.MALFORMED: pb.CHANNEL_UNSPECIFIED,
}
_FINISH_REASONS: Final = {
    engine_pb2.FINISH_REASON_STOP: pb.FINISH_REASON_STOP,
    engine_pb2.FINISH_REASON_TOOL_CALL: pb.FINISH_REASON_TOOL_CALL,
    engine_pb2.FINISH_REASON_LENGTH: pb.FINISH_REASON_LENGTH,
}


class TokenLog:
    """One try of one answer to ``request``. Feed it every row once; ``close`` ends it."""

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        request: GenerationRequest,
        stop_strings: StopStrings,
        *,
        prompt_tokens: int,
    ) -> None:
        self.is_over = False
        """Whether the answer has ended: by the engine's word, or at a stop string."""
        self._token_bytes = token_bytes
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._parser = HarmonyParser(token_bytes)
        self._stop_filter = StopFilter(stop_strings) if request.stop else None
        self._asks_logprobs = request.top_logprobs is not None
        # Of the tokens that are in no response yet; empty where none are asked for.
        self._logprobs: deque[pb.TokenLogprob | None] = deque()
        self._finished = pb.Finished()

    def extend(self, rows: Iterable[engine_pb2.StepRow]) -> Iterator[pb.GenerateResponse]:
        """Events of the rows; what waited together in one channel is one event."""
        events: list[Event] = []
        for row in rows:
            events += self._read(row)
            if self.is_over:
                break
        return self._responses(events)

    @property
    def tokens(self) -> int:
        """Tokens read so far, without what a stop string cut off."""
        return self._parser.usage.total

    def close(self, cached_tokens: int) -> Iterator[pb.GenerateResponse]:
        """Usage and the reason of the end: the last two events."""
        counts = self._parser.usage
        usage = pb.Usage(
            prompt_tokens=self._prompt_tokens,
            cached_tokens=cached_tokens,
            output_tokens=counts.total,
            reasoning_tokens=counts.analysis,
            commentary_tokens=counts.commentary,
            tool_call_tokens=counts.tool_call,
            final_tokens=counts.final,
            control_tokens=counts.control,
        )
        yield pb.GenerateResponse(usage=usage)
        yield pb.GenerateResponse(finished=self._finished)

    @property
    def recoveries(self) -> dict[str, int]:
        """Repairs of malformed output, by kind."""
        return {kind.value: count for kind, count in self._parser.recoveries.items()}

    def _read(self, row: engine_pb2.StepRow) -> Iterator[Event]:
        stop_index = self._stop_index(row)
        for index, token in enumerate(row.token_ids, start=row.first_index):
            if index == stop_index and self._parser.channel is Channel.FINAL:
                self._finished.stop_token_id = token
                events = self._parser.feed_stop_token(token)
            else:
                events = self._parser.feed(token)
            if self._asks_logprobs:
                self._logprobs.append(self._logprob(row, index, token))
            yield from self._unstopped(events)
            if self.is_over:
                return
        if row.finish_reason:
            yield from self._unstopped(self._parser.finish())
            if not self.is_over:
                self._finished.reason = _FINISH_REASONS[row.finish_reason]
                self.is_over = True

    def _stop_index(self, row: engine_pb2.StepRow) -> int | None:
        """The index in the answer of the stop token at which the engine ended it, if at one."""
        if row.finish_reason != engine_pb2.FINISH_REASON_STOP or not row.token_ids:
            return None
        if row.token_ids[-1] not in self._request.stop_token_ids:
            return None
        return row.first_index + len(row.token_ids) - 1

    def _unstopped(self, events: list[Event]) -> Iterable[Event]:
        """What may be sent of the events of one token. Ends the answer at a stop string."""
        if self._stop_filter is None:
            return events
        sent: list[Event] = []
        may_match = self._parser.usage.total > self._request.min_output_tokens
        for event in events:
            if may_match and isinstance(event, TextDelta) and event.channel is Channel.FINAL:
                sent += self._stop_filter.feed(event)
            else:
                sent += [*self._stop_filter.flush(), event]
            if self._stop_filter.matched is not None:
                self._finished = pb.Finished(
                    reason=pb.FINISH_REASON_STOP, stop=self._stop_filter.matched
                )
                self.is_over = True
                return sent
        if self._parser.channel is not Channel.FINAL:
            sent += self._stop_filter.flush()
        return sent

    def _logprob(self, row: engine_pb2.StepRow, index: int, token: int) -> pb.TokenLogprob | None:
        """Of a token that was just parsed; None unless it was sampled as text of a body."""
        if not row.HasField("logprobs") or row.logprobs.index != index:
            return None
        if token >= FIRST_SPECIAL or not self._parser.in_body:
            return None
        top = zip(row.logprobs.top_token_ids, row.logprobs.top_logprobs, strict=True)
        return pb.TokenLogprob(
            token=self._one_logprob(token, row.logprobs.logprob),
            top=[self._one_logprob(*likely) for likely in top],
        )

    def _one_logprob(self, token: int, logprob: float) -> pb.Logprob:
        return pb.Logprob(token_id=token, token=self._token_bytes(token), logprob=logprob)

    def _responses(self, events: list[Event]) -> Iterator[pb.GenerateResponse]:
        for _, together in groupby(events, key=_stretch):
            response = self._response(list(together))
            # Some tokens stand for no text, as the one that ends a message.
            if (
                self._request.include_token_ids
                or response.tool_call.WhichOneof("part")
                or response.delta.text
            ):
                yield response

    def _response(self, events: list[Event]) -> pb.GenerateResponse:
        first = events[0]
        tokens = [token for event in events for token in event.token_ids]
        text = "".join(_text(event) for event in events)
        match first:
            case TextDelta():
                delta = pb.Delta(channel=_CHANNELS[first.channel], text=text)
                response = pb.GenerateResponse(delta=delta)
            case ToolCallStart():
                start = pb.ToolCallStart(id=f"call_{uuid.uuid4().hex}", name=first.name)
                part = pb.ToolCallDelta(index=first.index, start=start)
                response = pb.GenerateResponse(tool_call=part)
            case ToolCallArguments():
                part = pb.ToolCallDelta(index=first.index, arguments=text)
                response = pb.GenerateResponse(tool_call=part)
            case ToolCallEnd():
                part = pb.ToolCallDelta(index=first.index, end=pb.ToolCallEnd())
                response = pb.GenerateResponse(tool_call=part)
        said = response.tool_call if response.HasField("tool_call") else response.delta
        if self._request.include_token_ids:
            said.token_ids.extend(tokens)
        if self._asks_logprobs:
            said.logprobs.extend(self._take_logprobs(events))
        return response

    def _take_logprobs(self, events: list[Event]) -> Iterator[pb.TokenLogprob]:
        for event in events:
            for _ in event.token_ids:
                logprob = self._logprobs.popleft()
                if logprob is not None and _text(event):
                    yield logprob


def _stretch(event: Event) -> object:
    """Events with the same one become one response when they follow each other."""
    match event:
        case TextDelta(channel=channel):
            return channel
        case ToolCallArguments(index=index):
            return index
        case _:
            return object()


def _text(event: Event) -> str:
    return event.text if isinstance(event, TextDelta | ToolCallArguments) else ""
