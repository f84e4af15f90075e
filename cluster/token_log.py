"""What one answer has said: its tokens parsed into events, and how they count."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Final

from moeray.cluster.generation import Channel
from moeray.cluster.harmony_parser import (
    Event,
    HarmonyParser,
    TextDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from moeray.engine.v1 import engine_pb2
from moeray.v1 import inference_pb2 as pb

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
    """One try of one answer. Feed it every row once; ``close`` ends it."""

    def __init__(
        self, token_bytes: Callable[[int], bytes], prompt_tokens: int, *, include_token_ids: bool
    ) -> None:
        self._parser = HarmonyParser(token_bytes)
        self._prompt_tokens = prompt_tokens
        self._include_token_ids = include_token_ids
        self._finish_reason: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED

    def extend(self, rows: Iterable[engine_pb2.StepRow]) -> Iterator[pb.GenerateResponse]:
        """Events of the rows; what waited together in one channel is one event."""
        events: list[Event] = []
        for row in rows:
            for token in row.token_ids:
                events += self._parser.feed(token)
            if row.finish_reason:
                self._finish_reason = _FINISH_REASONS[row.finish_reason]
                events += self._parser.finish()
        return self._responses(events)

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
        yield pb.GenerateResponse(finished=pb.Finished(reason=self._finish_reason))

    @property
    def recoveries(self) -> dict[str, int]:
        """Repairs of malformed output, by kind."""
        return {kind.value: count for kind, count in self._parser.recoveries.items()}

    def _responses(self, events: list[Event]) -> Iterator[pb.GenerateResponse]:
        for _, together in groupby(events, key=_stretch):
            response = _response(list(together), include_token_ids=self._include_token_ids)
            # Some tokens stand for no text, as the one that ends a message.
            if (
                self._include_token_ids
                or response.tool_call.WhichOneof("part")
                or response.delta.text
            ):
                yield response


def _stretch(event: Event) -> object:
    """Events with the same one become one response when they follow each other."""
    match event:
        case TextDelta(channel=channel):
            return channel
        case ToolCallArguments(index=index):
            return index
        case _:
            return object()


def _response(events: list[Event], *, include_token_ids: bool) -> pb.GenerateResponse:
    first = events[0]
    tokens = [token for event in events for token in event.token_ids]
    token_ids = tokens if include_token_ids else []
    match first:
        case TextDelta():
            text = "".join(e.text for e in events if isinstance(e, TextDelta))
            delta = pb.Delta(channel=_CHANNELS[first.channel], text=text, token_ids=token_ids)
            return pb.GenerateResponse(delta=delta)
        case ToolCallStart():
            part = pb.ToolCallDelta(
                start=pb.ToolCallStart(id=f"call_{uuid.uuid4().hex}", name=first.name)
            )
        case ToolCallArguments():
            text = "".join(e.text for e in events if isinstance(e, ToolCallArguments))
            part = pb.ToolCallDelta(arguments=text)
        case ToolCallEnd():
            part = pb.ToolCallDelta(end=pb.ToolCallEnd())
    part.index = first.index
    part.token_ids.extend(token_ids)
    return pb.GenerateResponse(tool_call=part)
