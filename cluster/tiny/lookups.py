"""Problems with the functions that people declare most: a calculator, the weather and its like."""

import json
import random
from typing import Final

from moeray.cluster.tiny.calls import call_problem, draw_json
from moeray.cluster.tiny.draws import number
from moeray.cluster.tiny.functions import Function, Parameter, Value, a_or_an, draw_function
from moeray.cluster.tiny.problem import Problem
from moeray.cluster.tiny.words import CITIES, OBJECTS, SKIES, WEEKDAYS

_SIGNS: Final = {"+": ("+", "plus"), "-": ("-", "minus"), "*": ("*", "*", "times", "\u00d7", "x")}
_ASK_CALCULATOR: Final = (
    "What is {}?",
    "Calculate {}.",
    "Compute {}.",
    "How much is {}?",
    "Use the calculator: {}",
    "Please calculate {}.",
    "{} =",
)
_CALCULATOR_TEXTS: Final = (
    "",
    "Evaluates an arithmetic expression.",
    "Calculates an expression.",
    "Does arithmetic.",
)
_ASK_WEATHER: Final = (
    "What is the weather in {}?",
    "How is the weather in {}?",
    "What is the weather like in {}?",
    "Tell me the weather in {}.",
    "How warm is it in {}?",
    "Weather in {}?",
    "Get the weather for {}.",
    "I want to know the weather in {}.",
    "What's the weather in {}?",
)
_ASK_TIME: Final = (
    "What time is it in {}?",
    "Tell me the time in {}.",
    "What is the time in {}?",
    "Time in {}?",
)
_ASK_PRICE: Final = (
    "What is the price of {}?",
    "How much is {}?",
    "What does {} cost?",
    "Tell me the price of {}.",
)
_ASK_DISTANCE: Final = (
    "How far is it from {} to {}?",
    "What is the distance from {} to {}?",
    "Tell me how far it is from {} to {}.",
)
_CITY: Final = Parameter("city", "string", required=True)
_OTHERS: Final = (
    Function("get", "weather", (_CITY,), "Get the weather in a city."),
    Function("get", "time", (_CITY,)),
    Function("get", "price", (Parameter("item", "string", required=True),)),
    Function(
        "get",
        "distance",
        (
            Parameter("start", "string", required=True),
            Parameter("end", "string", required=True),
        ),
    ),
)
_DAYS: Final = ("today", "tomorrow", *(f"on {day}" for day in WEEKDAYS))
_UNITS: Final = ("celsius", "fahrenheit")


_CALCULATOR: Final = Function(
    "calculator",
    "",
    (Parameter("expression", "string", required=True),),
    "Evaluates an arithmetic expression.",
)


def draw_calculator(rng: random.Random) -> Problem:
    """An expression of two or three numbers for the declared calculator."""
    count = rng.choice((2, 2, 2, 3))
    numbers = [str(number(rng, rng.choice((1, 2, 3, 4, 5, 5, 6)))) for _ in range(count)]
    signs = [rng.choice("+-**") for _ in range(count - 1)]
    expression, spoken = numbers[0], numbers[0]
    total = _evaluate(numbers, signs)
    for sign, operand in zip(signs, numbers[1:], strict=True):
        word = rng.choice(_SIGNS[sign])
        expression += f" {sign} {operand}"
        spoken += f" {word} {operand}"
    if all(sign in spoken for sign in signs) and rng.random() < 0.2:
        spoken = spoken.replace(" ", "")
    name = rng.choice(("calculator", "calculator", "calculate"))
    function = Function(name, "", _CALCULATOR.parameters, rng.choice(_CALCULATOR_TEXTS))
    result = str(total) if rng.random() < 0.7 else draw_json(rng, {"result": total})
    text = rng.choice(_ASK_CALCULATOR).format(spoken)
    arguments: dict[str, Value] = {"expression": expression}
    return call_problem(
        rng, "calculator", function, arguments, _among_others(rng, function), text,
        result, str(total),
    )  # fmt: skip


def draw_lookup(rng: random.Random) -> Problem:
    """A question that a declared function knows the answer to."""
    draw = rng.choice((_weather, _weather, _weather, _time, _price, _distance))
    function, arguments, text, fields, final = draw(rng)
    # There are few cities: what comes back makes the problem.
    key = json.dumps([function.name, arguments, fields])
    return call_problem(
        rng, "lookup", function, arguments, _among_others(rng, function), text,
        draw_json(rng, fields), final, key,
    )  # fmt: skip


def _among_others(rng: random.Random, wanted: Function) -> list[Function]:
    """``wanted`` among up to two others, some of them lookups too."""
    functions = {wanted.name: wanted}
    nouns = {wanted.noun or wanted.name}
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        other = rng.choice((*_OTHERS, _CALCULATOR)) if rng.random() < 0.5 else draw_function(rng)
        about = other.noun or other.name
        if about not in nouns:
            functions[other.name] = other
            nouns.add(about)
    shuffled = list(functions.values())
    rng.shuffle(shuffled)
    return shuffled


_Lookup = tuple[Function, dict[str, Value], str, dict[str, Value], str]


def _weather(rng: random.Random) -> _Lookup:
    city = rng.choice(CITIES)
    text = rng.choice(_ASK_WEATHER)
    place = Parameter(
        rng.choice(("city", "city", "location", "place")),
        "string",
        required=True,
        description=rng.choice(("", "", "The city.")),
    )
    parameters = [place]
    arguments: dict[str, Value] = {place.name: city}
    if rng.random() < 0.4:
        parameters.append(Parameter("day", "string", required=False))
        if rng.random() < 0.6:
            day = rng.choice(_DAYS)
            arguments["day"] = day.removeprefix("on ")
            city_text = f"{city} {day}"
        else:
            city_text = city
    else:
        city_text = city
    if rng.random() < 0.35:
        parameters.append(Parameter("unit", "enum", required=False, choices=_UNITS))
        if rng.random() < 0.6:
            arguments["unit"] = rng.choice(_UNITS)
            city_text += f" in {arguments['unit']}"
    name = rng.choice(
        (("get", "weather"), ("get", "weather"), ("weather", ""), ("check", "weather"))
    )
    description = rng.choice(("", "Get the weather.", "Get the weather in a city."))
    function = Function(*name, tuple(parameters), description)
    degrees, sky = rng.randrange(-19, 41), rng.choice(SKIES)
    fields: dict[str, Value] = {"temperature": degrees, "sky": sky}
    if rng.random() < 0.2:
        fields = {"sky": sky, "temperature": degrees}
    final = f"It is {degrees} degrees and {sky} in {city}."
    return function, arguments, text.format(city_text), fields, final


def _time(rng: random.Random) -> _Lookup:
    city, time = rng.choice(CITIES), f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    function = Function("get", "time", (_CITY,))
    text = rng.choice(_ASK_TIME).format(city)
    return function, {"city": city}, text, {"time": time}, f"It is {time} in {city}."


def _price(rng: random.Random) -> _Lookup:
    thing, price = rng.choice(OBJECTS), rng.randrange(1, 1000)
    name = rng.choice(("item", "product", "name"))
    function = Function("get", "price", (Parameter(name, "string", required=True),))
    text = rng.choice(_ASK_PRICE).format(rng.choice((f"the {thing}", a_or_an(thing))))
    return function, {name: thing}, text, {"price": price}, f"The price of the {thing} is {price}."


def _distance(rng: random.Random) -> _Lookup:
    start, end = rng.sample(CITIES, 2)
    names = rng.choice((("start", "end"), ("from", "to"), ("origin", "destination")))
    parameters = tuple(Parameter(name, "string", required=True) for name in names)
    function = Function("get", "distance", parameters)
    length = rng.randrange(10, 10000)
    return (
        function,
        {names[0]: start, names[1]: end},
        rng.choice(_ASK_DISTANCE).format(start, end),
        {"distance": length},
        f"It is {length} km from {start} to {end}.",
    )


def _evaluate(numbers: list[str], signs: list[str]) -> int:
    """The value; products come before sums and differences."""
    terms = [int(numbers[0])]
    for sign, operand in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            terms[-1] *= int(operand)
        else:
            terms.append(int(operand) if sign == "+" else -int(operand))
    return sum(terms)
