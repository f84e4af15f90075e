"""What ``moeray demo`` asks, and whether what comes back has the form that the server promises.

Three questions show effort, a function call and a JSON answer, in words that the embedded model was
trained on. Whether an answer is right is shown; only its form decides whether the demo fails: the
usage adds up, the thinking budget is kept, the call and the JSON are of their schemas.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moeray.cluster.client import Client, user_request
from moeray.cluster.generation import Tool
from moeray.cluster.terminal import StreamPrinter, printable
from moeray.cluster.tiny.eval_requests import json_text, tool_message, with_result
from moeray.cluster.tiny.scoring import finish_reason, normalised, parse_arguments, parse_json
from moeray.v1 import inference_pb2 as pb

PRODUCT: Final = "What is 47 * 86?"
PRODUCT_IS: Final = "4042"
SHORT_BUDGET: Final = 24
"""Tokens: less than the steps of the product take."""
FORECAST: Final = "What is the weather in Paris?"
WEATHER: Final = Tool(
    "get_weather",
    "Get the weather in a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
WEATHER_RESULT: Final = '{"temperature": 21, "sky": "clear"}'
FACTS: Final = "Anna is 34 years old and lives in Rome."
FACTS_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
    },
    "required": ["name", "age", "city"],
}
PROMPT_BUDGETS: Final = {"low": 16, "medium": 48, "high": 96}
"""Thinking budgets of a prompt that the user gave."""
_PROMPT_ANSWER_TOKENS: Final = 48
"""Room for its answer and the headers, beyond the thinking budget."""
_MAX_OUTPUT_TOKENS: Final = 1024
_DATE: Final = "2026-01-01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One answer and its times in seconds, as this client saw them."""

    name: str
    budget: int | None
    """Tokens that the analysis may take."""
    answer: pb.Answer
    first_token_s: float
    total_s: float
    complaints: tuple[str, ...] = ()
    """What was not as promised, beyond what every answer must hold."""

    @property
    def tokens_per_s(self) -> float:
        """Decode rate: tokens after the first event over the time they took."""
        return self.answer.usage.output_tokens / max(self.total_s - self.first_token_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Stage:
    """Where questions are asked and answers shown."""

    client: Client
    console: Console

    def ask(self, name: str, request: pb.GenerateRequest) -> Run:
        """Stream the answer to ``request`` under a heading of what the prompt says of effort."""
        rendered = self.client.count_tokens(request).prompt
        in_prompt = next((line for line in rendered.splitlines() if "Reasoning:" in line), "")
        budget = request.thinking_budget if request.HasField("thinking_budget") else None
        limit = "" if budget is None else f", thinking budget {budget}"
        self.console.rule(f"{name}{limit}; prompt says: {in_prompt!r}")
        printer = StreamPrinter(self.console, show_analysis=True, headings=True)
        start = time.perf_counter()
        first_token = None
        for event in self.client.generate(request):
            if first_token is None and event.WhichOneof("event") != "started":
                first_token = time.perf_counter()
            printer.add(event)
        end = time.perf_counter()
        return Run(
            name=name,
            budget=budget,
            answer=printer.answer.first,
            first_token_s=(first_token or end) - start,
            total_s=end - start,
        )

    def say(self, who: str, text: str) -> None:
        """Show what did not come from the model."""
        line = Text.assemble((f"[{who}] ", "bold green"), printable(text))
        self.console.print(line, soft_wrap=True)

    def judge(self, right: bool, expected: str) -> None:
        """Show whether the answer is right; a wrong one does not end the demo."""
        mark = ("right", "green") if right else (f"wrong: it is {expected}", "yellow")
        self.console.print(Text.assemble("=> ", mark))


def ask_questions(stage: Stage) -> list[Run]:
    """The three questions, in words that the embedded model knows."""
    return [*_effort(stage), *_function_call(stage), _json_answer(stage)]


def ask_prompt(stage: Stage, prompt: str) -> list[Run]:
    """``prompt`` at each reasoning effort, with a thinking budget."""
    stage.say("user", prompt)
    runs = []
    for effort, budget in PROMPT_BUDGETS.items():
        limit = budget + _PROMPT_ANSWER_TOKENS
        request = user_request(
            prompt,
            effort=effort,
            thinking_budget=budget,
            max_output_tokens=limit,
            seed=2026,
            current_date=_DATE,
        )
        runs.append(stage.ask(f"effort {effort}", request))
    return runs


def form_complaints(run: Run) -> list[str]:
    """What is not as promised in an answer, whatever it says."""
    usage, budget = run.answer.usage, run.budget
    parts = (
        usage.reasoning_tokens
        + usage.commentary_tokens
        + usage.tool_call_tokens
        + usage.final_tokens
        + usage.control_tokens
    )
    found = list(run.complaints)
    if budget is not None and usage.reasoning_tokens > budget:
        found.append(f"analysis took {usage.reasoning_tokens} of {budget} tokens")
    if not run.answer.final and not run.answer.tool_calls:
        found.append("the answer is empty")
    if usage.output_tokens != parts:
        found.append(f"the usage does not add up: {parts} of {usage.output_tokens} tokens")
    return [f"{run.name}: {complaint}" for complaint in found]


def runs_table(runs: list[Run]) -> Table:
    """What the client saw of each answer."""
    table = Table(
        title="What the client saw: tokens, time to first token (TTFT), decode rate",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    columns: dict[str, Callable[[Run], str]] = {
        "": lambda run: run.name,
        "prompt": lambda run: str(run.answer.usage.prompt_tokens),
        "budget": lambda run: "-" if run.budget is None else str(run.budget),
        "analysis": lambda run: str(run.answer.usage.reasoning_tokens),
        "output": lambda run: str(run.answer.usage.output_tokens),
        "TTFT ms": lambda run: f"{run.first_token_s * 1e3:.0f}",
        "tok/s": lambda run: f"{run.tokens_per_s:.0f}",
        "end": lambda run: finish_reason(run.answer),
    }
    for name in columns:
        table.add_column(name, justify="left" if name in ("", "end") else "right", no_wrap=True)
    for run in runs:
        table.add_row(*(show(run) for show in columns.values()))
    return table


def _effort(stage: Stage) -> list[Run]:
    """The same product at each effort, and at high effort with a budget that cuts the analysis."""
    stage.say("user", PRODUCT)
    runs = []
    for effort, budget in (("low", None), ("medium", None), ("high", None), ("high", SHORT_BUDGET)):
        name = f"effort {effort}" if budget is None else "cut short"
        run = stage.ask(name, _greedy(PRODUCT, effort, thinking_budget=budget))
        stage.judge(normalised(run.answer.final) == PRODUCT_IS, PRODUCT_IS)
        runs.append(run)
    return runs


def _function_call(stage: Stage) -> list[Run]:
    """A function is declared, called, and its result told."""
    stage.say("user", FORECAST)
    stage.say("declared", f"{WEATHER.name}: {json_text(WEATHER.parameters)}")
    request = _greedy(FORECAST, "medium")
    request.tools.append(tool_message(WEATHER))
    run = stage.ask("function call", request)
    calls = run.answer.tool_calls
    arguments = parse_arguments(calls[0], (WEATHER,)) if len(calls) == 1 else None
    if arguments is None:
        return [_blamed(run, f"not one valid call of {WEATHER.name}")]
    stage.judge(arguments == {"city": "Paris"}, "the weather in Paris")
    stage.say("result", WEATHER_RESULT)
    told = stage.ask("its result", with_result(request, run.answer, WEATHER_RESULT))
    if not told.answer.final:
        told = _blamed(told, "the result is not told")
    return [run, told]


def _json_answer(stage: Stage) -> Run:
    """A schema in the prompt, and an answer that is read back as JSON of that schema."""
    schema = json.dumps(FACTS_SCHEMA, separators=(",", ":"))
    prompt = f"{FACTS}\nAnswer as JSON with this schema: {schema}"
    stage.say("user", prompt)
    run = stage.ask("JSON answer", _greedy(prompt, "medium"))
    value = parse_json(run.answer.final, FACTS_SCHEMA)
    if value is None:
        return _blamed(run, "the answer is not JSON of the schema")
    stage.say("parsed", ", ".join(f"{name} = {field!r}" for name, field in value.items()))
    expected = {"name": "Anna", "age": 34, "city": "Rome"}
    stage.judge(value == expected, json_text(expected))
    return run


def _greedy(prompt: str, effort: str, *, thinking_budget: int | None = None) -> pb.GenerateRequest:
    return user_request(
        prompt,
        effort=effort,
        thinking_budget=thinking_budget,
        max_output_tokens=_MAX_OUTPUT_TOKENS,
        temperature=0.0,
        current_date=_DATE,
    )


def _blamed(run: Run, complaint: str) -> Run:
    return replace(run, complaints=(*run.complaints, complaint))
