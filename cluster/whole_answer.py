"""Streamed answers put together: what Complete sends, and what the command line keeps."""

from moeray.v1 import inference_pb2 as pb


class WholeAnswer:
    """Takes the events of one call; ``response`` grows with them.

    Text whose header was malformed belongs to no field of Answer and is left out.
    """

    def __init__(self, request_id: str = "") -> None:
        self.response = pb.CompleteResponse(request_id=request_id)

    @property
    def first(self) -> pb.Answer:
        """Answer 0: the only one, unless more were asked for."""
        return self._answer(0)

    def add(self, event: pb.GenerateResponse) -> None:
        """Take one event of the stream."""
        answer = self._answer(event.answer)
        match event.WhichOneof("event"):
            case "started":
                self.response.request_id = event.started.request_id
                self.response.model = event.started.model
            case "delta":
                _add_text(answer, event.delta)
            case "tool_call":
                _add_tool_call(answer, event.tool_call)
            case "usage":
                answer.usage.CopyFrom(event.usage)
            case "finished":
                answer.finished.CopyFrom(event.finished)

    def _answer(self, index: int) -> pb.Answer:
        while len(self.response.answers) <= index:
            self.response.answers.add()
        return self.response.answers[index]


def _add_text(answer: pb.Answer, delta: pb.Delta) -> None:
    match delta.channel:
        case pb.CHANNEL_ANALYSIS:
            answer.analysis += delta.text
        case pb.CHANNEL_COMMENTARY:
            answer.commentary += delta.text
        case pb.CHANNEL_FINAL:
            answer.final += delta.text
    _add_tokens(answer, delta)


def _add_tool_call(answer: pb.Answer, part: pb.ToolCallDelta) -> None:
    match part.WhichOneof("part"):
        case "start":
            answer.tool_calls.add(id=part.start.id, name=part.start.name)
        case "arguments":
            answer.tool_calls[part.index].arguments += part.arguments
    _add_tokens(answer, part)


def _add_tokens(answer: pb.Answer, said: pb.Delta | pb.ToolCallDelta) -> None:
    answer.token_ids.extend(said.token_ids)
    answer.logprobs.extend(said.logprobs)
