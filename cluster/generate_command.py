"""``moeray generate`` and ``moeray chat``: plain gRPC clients of a running server."""

from typing import Annotated

import typer
from google.protobuf import json_format
from rich.console import Console

from moeray.cluster import generate_options as options
from moeray.cluster.answer_view import AnswersPrinter, logprobs_table, usage_line
from moeray.cluster.client import EFFORTS, Client, ClientError, user_request
from moeray.cluster.terminal import StreamPrinter, fail
from moeray.cluster.whole_answer import WholeAnswer
from moeray.v1 import inference_pb2 as pb


def generate(
    prompt: Annotated[str, typer.Argument(help="What the user says.")],
    effort: options.EffortOption = options.Effort.medium,
    target: options.Target = options.DEFAULT_TARGET,
    thinking_budget: options.Budget = None,
    max_output_tokens: options.MaxOutput = None,
    min_output_tokens: options.MinOutput = 0,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    stop_token_id: options.StopTokenId = None,
    ignore_eos: options.IgnoreEos = False,
    n: options.Answers = 1,
    logprobs: options.Logprobs = None,
    cache_salt: options.CacheSalt = "",
    timeout: options.Timeout = None,
    show_analysis: options.ShowAnalysis = False,
    as_json: options.AsJson = False,
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
    sampling = pb.Sampling(
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=options.read_logit_bias(logit_bias or []),
    )
    wishes = pb.GenerateRequest(
        sampling=sampling,
        stop=stop,
        stop_token_ids=stop_token_id,
        ignore_eos=ignore_eos,
        min_output_tokens=min_output_tokens,
        n=n,
        top_logprobs=logprobs,
        cache_salt=cache_salt,
    )
    request.MergeFrom(wishes)
    with Client(target) as client:
        if as_json:
            print(_complete_json(client, request, timeout))
        else:
            _show(client, request, timeout, show_analysis=show_analysis)


def chat(
    target: options.Target = options.DEFAULT_TARGET,
    effort: options.EffortOption = options.Effort.medium,
    thinking_budget: options.Budget = None,
    max_output_tokens: options.MaxOutput = None,
    temperature: options.Temperature = None,
    show_analysis: options.ShowAnalysis = False,
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
            self._console.print(usage_line(printer.answer.first), style="dim")
        self._keep(printer.answer.first)

    def _keep(self, answer: pb.Answer) -> None:
        # A turn without an answer leaves the conversation as it was before it.
        if answer.final:
            self._request.messages.append(
                pb.Message(role=pb.ROLE_ASSISTANT, channel=pb.CHANNEL_FINAL, content=answer.final)
            )
        else:
            del self._request.messages[-1]


def _show(
    client: Client, request: pb.GenerateRequest, timeout: float | None, *, show_analysis: bool
) -> None:
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    printer = AnswersPrinter(console, request.n, show_analysis=show_analysis)
    try:
        for event in client.generate(request, timeout):
            printer.add(event)
    except ClientError as error:
        fail(str(error))
    for index, answer in enumerate(printer.whole.response.answers):
        name = f"answer {index}: " if request.n > 1 else ""
        errors.print(f"{name}{usage_line(answer)}", style="dim", markup=False)
        if answer.logprobs:
            console.print(logprobs_table(answer))


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
