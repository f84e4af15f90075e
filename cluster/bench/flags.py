"""What the values of ``moeray bench``'s flags mean. Every function raises ValueError."""

import math

from moeray.cluster.bench.load import (
    MIN_OUTPUT_TOKENS,
    FixedLength,
    Lengths,
    LognormalLength,
    Ramp,
    UniformLength,
)
from moeray.cluster.bench.stats import ServiceLevel
from moeray.cluster.client import EFFORTS

_UNITS_S = {"ms": 1e-3, "s": 1.0}


def parse_lengths(text: str, least: int) -> Lengths:
    """``N``, ``A:B`` (uniform) or ``lognormal:MEAN:SIGMA``; none below ``least``."""
    match text.split(":"):
        case [tokens]:
            return FixedLength(_tokens(tokens, least))
        case ["lognormal", mean, sigma]:
            parsed = LognormalLength(_positive(mean), _positive(sigma))
            if parsed.mean < least:
                raise ValueError(f"the mean {mean} is below {least}")
            return parsed
        case [low, high]:
            uniform = UniformLength(_tokens(low, least), _tokens(high, least))
            if uniform.least > uniform.most:
                raise ValueError(f"{low} is above {high}")
            return uniform
    raise ValueError(f"{text!r} is neither N, nor A:B, nor lognormal:MEAN:SIGMA")


def parse_prompt_lengths(text: str) -> Lengths:
    return parse_lengths(text, 1)


def parse_output_lengths(text: str) -> Lengths:
    return parse_lengths(text, MIN_OUTPUT_TOKENS)


def parse_efforts(text: str) -> dict[str, float]:
    """``low=0.5,high=0.5``: weights, in any scale."""
    weights = _pairs(text)
    for effort in weights:
        if effort not in EFFORTS:
            raise ValueError(f"{effort!r} is no effort: {', '.join(EFFORTS)}")
    return {effort: _positive(weight) for effort, weight in weights.items()}


def parse_ramp(text: str) -> Ramp:
    """``FROM:TO:SECONDS``."""
    match text.split(":"):
        case [first, last, seconds]:
            ramp = Ramp(_not_negative(first), _not_negative(last), _positive(seconds))
            if not ramp.first and not ramp.last:
                raise ValueError("a ramp from 0 to 0 has no requests")
            return ramp
    raise ValueError(f"{text!r} is not FROM:TO:SECONDS")


def parse_service_level(text: str) -> ServiceLevel:
    """``ttft=500ms,itl=50ms,e2e=10s``: any of the three."""
    limits = {name: _seconds(value) for name, value in _pairs(text).items()}
    for name in limits:
        if name not in ("ttft", "itl", "e2e"):
            raise ValueError(f"{name!r} is none of ttft, itl, e2e")
    return ServiceLevel(ttft_s=limits.get("ttft"), itl_s=limits.get("itl"), e2e_s=limits.get("e2e"))


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not NAME=VALUE")
        if name in pairs:
            raise ValueError(f"{name} is given twice")
        pairs[name] = value
    return pairs


def _seconds(text: str) -> float:
    for unit, seconds in _UNITS_S.items():
        if text.endswith(unit):
            return _positive(text.removesuffix(unit)) * seconds
    raise ValueError(f"{text!r} has no unit: ms or s")


def _tokens(text: str, least: int) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no number of tokens")
    if int(text) < least:
        raise ValueError(f"{text} is below {least}")
    return int(text)


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{text} is not 0 or above")
    return number


def _positive(text: str) -> float:
    if (number := _not_negative(text)) == 0:
        raise ValueError(f"{text} is not above 0")
    return number
