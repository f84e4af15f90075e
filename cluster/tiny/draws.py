"""What many generators draw: a date, a number of so many digits, a user's message."""

import random

from moeray.cluster.generation import Message, Role


def any_date(rng: random.Random) -> str:
    """A date from 2000 to 2099, YYYY-MM-DD."""
    return f"{rng.randrange(2000, 2100)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"


def number(rng: random.Random, digits: int) -> int:
    """A number of exactly so many digits."""
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one message."""
    return (Message(role=Role.USER, content=text),)
