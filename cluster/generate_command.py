"""``moeray generate`` and ``moeray chat``: plain gRPC clients of a running server."""

from enum import StrEnum
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.console import Console

from moeray.cluster.client import EFFORTS, Client, ClientError, user_request
from moeray.cluster.terminal import StreamPrinter, fail
from moeray.cluster.whole_answer import WholeAnswer
from moeray.v1 import inference_pb2 as pb

DEFAULT_TARGET = "127.0.0.1:50051"


class Effort(StrEnum):
    low = "low"
    medium = "medium"
    high = "high"


Target = Annotated[str, typer.Option(metavar="HOST:PORT", help="The server.")]
EffortOption = Annotated[Effort, typer.Option(help="How long the model is asked to think.")]
Budget = Annotated[
    int | None, typer.Option(min=0, help="Hard limit on tokens in analysis; 0 answers at once.")
]
MaxOutput = Annotated[
    int | None, typer.Option(min=16, help="Limit on generated tokens. Default: the server's.")
]
Temperature = Annotated[
    float | None, typer.Option(min=0.0, max=2.0, help="Softmax temperature; 0 is greedy.")
]
ShowAnalysis = Annotated[bool, typer.Option("--show-analysis", help="Show the chain of thought.")]


def generate(
    prompt: Annotated[str, typer.Argument(help="What the user says.")],
    effort: EffortOption = Effort.medium,
    target: Target = DEFAULT_TARGET,
    thinking_budget: Budget = None,
    max_output_tokens: MaxOutput = None,
    temperature: Temperature = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Nucleus.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same tokens.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.0, help="Deadline in seconds.")] = None,
    show_analysis: ShowAnalysis = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as one JSON object.")
    ] = False,
) -> None:
    """Ask a running server one question and stream its answer."""
    request = user_request(
        prompt,
        effort=effort.value,
        thinking_budget=thinking_budget,
        max_output_tokens=max_output_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    with Client(target) as client:
        if as_json:
            print(_complete_json(client, request, timeout))
            return
        console = Console(highlight=False)
        printer = StreamPrinter(console, show_analysis=show_analysis, headings=show_analysis)
        _stream(client, request, printer, timeout)
        Console(stderr=True, highlight=False).print(
            usage_line(printer.answer.response), style="dim"
        )


def chat(
    target: Target = DEFAULT_TARGET,
    effort: EffortOption = Effort.medium,
    thinking_budget: Budget = None,
    max_output_tokens: MaxOutput = None,
    temperature: Temperature = None,
    show_analysis: ShowAnalysis = False,
) -> None:
    """Talk with a running server; /effort switches the effort, Ctrl-C stops an answer."""
    console = Console(highlight=False)
    request = user_request(
        "",
        effort=effort.value,
        thinking_budget=thinking_budget,
        max_output_tokens=max_output_tokens,
        temperature=temperature,
    )
    del request.messages[:]
    with Client(target) as client:
        try:
            models = client.models()
        except ClientError as error:
            fail(str(error))
        names = ", ".join(model.name for model in models) or "no model yet"
        console.print(f"{names} at {target}. /help lists the commands.", style="dim")
        _Chat(client, request, console, show_analysis).run()


class _Chat:
    """One interactive conversation; ``request`` carries its messages and settings."""

    HELP = "/effort low|medium|high   /analysis (show or hide)   /reset   /exit"

    def __init__(
        self, client: Client, request: pb.GenerateRequest, console: Console, show_analysis: bool
    ) -> None:
        self._client = client
        self._request = request
        self._console = console
        self._show_analysis = show_analysis

    def run(self) -> None:
        """Read and answer until the user leaves."""
        while True:
            effort = next(n for n, v in EFFORTS.items() if v == self._request.reasoning_effort)
            try:
                line = self._console.input(f"[bold green]you ({effort})>[/] ").strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            if line == "/exit":
                return
            if line.startswith("/"):
                self._command(line.split())
            elif line:
                self._say(line)

    def _command(self, words: list[str]) -> None:
        match words:
            case ["/effort", effort] if effort in EFFORTS:
                self._request.reasoning_effort = EFFORTS[effort]
            case ["/analysis"]:
                self._show_analysis = not self._show_analysis
            case ["/reset"]:
                del self._request.messages[:]
            case ["/help"]:
                self._console.print(self.HELP)
            case _:
                self._console.print(f"unknown command; {self.HELP}", style="red", markup=False)

    def _say(self, text: str) -> None:
        self._request.messages.append(pb.Message(role=pb.ROLE_USER, content=text))
        printer = StreamPrinter(
            self._console, show_analysis=self._show_analysis, headings=self._show_analysis
        )
        try:
            for event in self._client.generate(self._request):
                printer.add(event)
        except ClientError as error:
            self._console.print(f"\n{error}", style="red", markup=False)
        except KeyboardInterrupt:
            self._console.print("\n(stopped)", style="dim")
        else:
            self._console.print(usage_line(printer.answer.response), style="dim")
        self._keep(printer.answer.response)

    def _keep(self, answer: pb.CompleteResponse) -> None:
        # A turn without an answer leaves the conversation as it was before it.
        if answer.final:
            self._request.messages.append(
                pb.Message(role=pb.ROLE_ASSISTANT, channel=pb.CHANNEL_FINAL, content=answer.final)
            )
        else:
            del self._request.messages[-1]


def usage_line(answer: pb.CompleteResponse) -> str:
    """The answer's counts and why it ended, in one line."""
    usage = answer.usage
    reason = pb.FinishReason.Name(answer.finish_reason).removeprefix("FINISH_REASON_").lower()
    return (
        f"{usage.prompt_tokens} prompt, {usage.reasoning_tokens} analysis,"
        f" {usage.final_tokens} final tokens; ended by {reason}"
    )


def _stream(
    client: Client, request: pb.GenerateRequest, printer: StreamPrinter, timeout: float | None
) -> None:
    try:
        for event in client.generate(request, timeout):
            printer.add(event)
    except ClientError as error:
        fail(str(error))


def _complete_json(client: Client, request: pb.GenerateRequest, timeout: float | None) -> str:
    answer = WholeAnswer()
    try:
        for event in client.generate(request, timeout):
            answer.add(event)
    except ClientError as error:
        fail(str(error))
    return json_format.MessageToJson(
        answer.response,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        ensure_ascii=False,
    )
