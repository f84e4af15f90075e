"""A streamed answer put together: what Complete sends, and what the command line keeps."""

from moeray.v1 import inference_pb2 as pb


class WholeAnswer:
    """Takes the events of one answer; ``response`` grows with them.

    Text whose header was malformed belongs to no field of CompleteResponse and is left out.
    """

    def __init__(self, request_id: str = "") -> None:
        self.response = pb.CompleteResponse(request_id=request_id)

    def add(self, event: pb.GenerateResponse) -> None:
        """Take one event of the stream."""
        match event.WhichOneof("event"):
            case "started":
                self.response.request_id = event.started.request_id
                self.response.model = event.started.model
            case "delta":
                self._add_text(event.delta)
            case "tool_call":
                self._add_tool_call(event.tool_call)
            case "usage":
                self.response.usage.CopyFrom(event.usage)
            case "finished":
                self.response.finish_reason = event.finished.reason

    def _add_text(self, delta: pb.Delta) -> None:
        match delta.channel:
            case pb.CHANNEL_ANALYSIS:
                self.response.analysis += delta.text
            case pb.CHANNEL_COMMENTARY:
                self.response.commentary += delta.text
            case pb.CHANNEL_FINAL:
                self.response.final += delta.text

    def _add_tool_call(self, part: pb.ToolCallDelta) -> None:
        match part.WhichOneof("part"):
            case "start":
                self.response.tool_calls.add(id=part.start.id, name=part.start.name)
            case "arguments":
                self.response.tool_calls[part.index].arguments += part.arguments
