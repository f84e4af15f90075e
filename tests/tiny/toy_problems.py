"""A few kinds of short problems, for the tests of the training code alone."""

from collections.abc import Iterator
from random import Random

from moeray.cluster.generation import Message, Role, Tool
from moeray.cluster.tiny.problem import Call, Problem, Reply, Thinking
from moeray.cluster.tiny.splits import Split

_LIGHT = Tool(
    "set_light",
    "Set a light's brightness.",
    {
        "type": "object",
        "properties": {"room": {"type": "string"}, "level": {"type": "integer"}},
        "required": ["room", "level"],
    },
)


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """Endless; sums of small numbers in words around them, and a light to be set."""
    random = Random(f"{split.value} {seed}")
    while True:
        yield _sum(random) if random.random() < 0.7 else _light(random)


def _sum(random: Random) -> Problem:
    a, b = random.randrange(100), random.randrange(100)
    messages = [Message(role=Role.USER, content=f"please tell me the sum of {a} and {b}")]
    if random.random() < 0.3:
        messages.insert(0, Message(role=Role.SYSTEM, content="Answer briefly."))
    if random.random() < 0.3:
        said = Message(role=Role.ASSISTANT, content="hello, what is it?")
        messages[-1:-1] = [Message(role=Role.USER, content="hello"), said]
    return Problem(
        task="sum",
        key=f"{a} {b}",
        messages=tuple(messages),
        current_date=f"2026-0{random.randrange(1, 10)}-1{random.randrange(10)}",
        reply=Reply(
            thinking=Thinking(f"{a} + {b} = {a + b}", f"{a + b} - {b} = {a}"), final=str(a + b)
        ),
    )


def _light(random: Random) -> Problem:
    room, level = random.choice(("kitchen", "hall", "garden")), random.randrange(100)
    return Problem(
        task="light",
        key=f"{room} {level}",
        messages=(Message(role=Role.USER, content=f"set the light of the {room} to {level}"),),
        tools=(_LIGHT,),
        current_date="2026-03-04",
        call=Call(
            thinking=Thinking(f"set_light {room} {level}", f"level is {level}"),
            name="set_light",
            arguments={"room": room, "level": level},
            result='{"ok":true}',
        ),
        reply=Reply(thinking=Thinking("it is set", "nothing is left"), final=f"The {room} is set."),
    )
