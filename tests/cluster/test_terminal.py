"""What a terminal shows of an answer, and what it never obeys."""

import io

from rich.console import Console

from moeray.cluster.terminal import StreamPrinter, printable
from moeray.v1 import inference_pb2 as pb


def events() -> list[pb.GenerateResponse]:
    return [
        pb.GenerateResponse(delta=pb.Delta(channel=pb.CHANNEL_ANALYSIS, text="think")),
        pb.GenerateResponse(delta=pb.Delta(channel=pb.CHANNEL_FINAL, text="ans")),
        pb.GenerateResponse(delta=pb.Delta(channel=pb.CHANNEL_FINAL, text="wer [bold]")),
        pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP)),
    ]


def shown(*, show_analysis: bool) -> str:
    out = io.StringIO()
    printer = StreamPrinter(
        Console(file=out, highlight=False), show_analysis=show_analysis, headings=show_analysis
    )
    for event in events():
        printer.add(event)
    assert printer.answer.first.final == "answer [bold]"
    assert printer.answer.first.analysis == "think"
    return out.getvalue()


def test_only_the_answer() -> None:
    assert shown(show_analysis=False) == "answer [bold]\n"


def test_with_analysis() -> None:
    assert shown(show_analysis=True) == "[analysis]\nthink\n[final]\nanswer [bold]\n"


def test_tool_calls_are_shown() -> None:
    out = io.StringIO()
    printer = StreamPrinter(Console(file=out), show_analysis=False, headings=True)
    start = pb.ToolCallDelta(index=0, start=pb.ToolCallStart(id="1", name="get_weather"))
    arguments = pb.ToolCallDelta(index=0, arguments='{"city":1}')
    for part in (start, arguments):
        printer.add(pb.GenerateResponse(tool_call=part))
    printer.add(pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_TOOL_CALL)))
    assert out.getvalue() == '[call get_weather]\n{"city":1}\n'
    assert printer.answer.first.tool_calls[0].arguments == '{"city":1}'


def test_escape_sequences_are_defused() -> None:
    assert printable("a\x1b[31mb\x07\x9b\n\té") == "a\ufffd[31mb\ufffd\ufffd\n\té"
