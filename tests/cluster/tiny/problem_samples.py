"""Problems made by hand, one of each kind that the scorer tells apart."""

from moeray.cluster.generation import Message, Role, Tool
from moeray.cluster.tiny.problem import Call, Problem, Reply, Thinking

THINKING = Thinking("one two three four", "five six seven eight nine")
"""4 words at medium effort, 9 at high."""
WEATHER = Tool(
    "get_weather",
    "Get the weather.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
CLOCK = Tool("get_time", "", None)


def user(text: str) -> tuple[Message, ...]:
    return (Message(role=Role.USER, content=text),)


def sum_problem(a: int, b: int) -> Problem:
    return Problem(
        task="addition",
        key=f"{a} {b}",
        messages=user(f"What is {a} + {b}?"),
        current_date="2026-01-01",
        reply=Reply(thinking=THINKING, final=str(a + b)),
    )


def json_problem(value: int) -> Problem:
    schema = {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "big": {"type": "boolean"}},
        "required": ["value", "big"],
    }
    return Problem(
        task="json",
        key=str(value),
        messages=user(f"Give {value} as JSON."),
        current_date="2026-01-01",
        reply=Reply(thinking=THINKING, final=f'{{"value": {value}, "big": false}}', schema=schema),
    )


def weather_problem(days: int) -> Problem:
    return Problem(
        task="tools",
        key=str(days),
        messages=user(f"What is the weather in Paris in {days} days?"),
        tools=(WEATHER, CLOCK),
        current_date="2026-01-01",
        call=Call(
            thinking=THINKING,
            name="get_weather",
            arguments={"city": "Paris", "days": days},
            result='{"degrees": 21}',
        ),
        reply=Reply(thinking=THINKING, final="It is 21 degrees."),
    )


def mixed(count: int) -> list[Problem]:
    """``count`` different problems; each third is a sum, a JSON answer, a function call."""
    makers = (lambda n: sum_problem(n, 2 * n), json_problem, weather_problem)
    return [makers[n % 3](n) for n in range(count)]
