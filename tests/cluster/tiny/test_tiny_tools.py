"""Function calls: arguments that the schema allows, stand in the request and come in order."""

import ast
import json
import operator
import random
import re

import pytest

from moeray.cluster.tiny import identity
from moeray.cluster.tiny.functions import Function, Parameter, draw_function, shown
from moeray.cluster.tiny.lookups import draw_calculator, draw_lookup
from moeray.cluster.tiny.problem import Call, Problem
from moeray.cluster.tiny.tools import draw_function_call, draw_no_call, draw_tool_problem
from tests.cluster.tiny.problem_checks import (
    Draw,
    check_family,
    check_one_key_one_answer,
    check_renders,
    drawn,
)

FAMILIES = (draw_function_call, draw_no_call, draw_lookup, draw_calculator)
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def calls(draw: Draw) -> list[tuple[Problem, Call]]:
    return [(problem, problem.call) for problem in drawn(draw) if problem.call is not None]


def evaluate(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return int(OPERATIONS[type(node.op)](evaluate(node.left), evaluate(node.right)))
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    return node.value


@pytest.mark.parametrize("draw", FAMILIES)
def test_every_problem_is_well_formed(draw: Draw) -> None:
    check_family(draw, least_distinct=1900, brief=True)


@pytest.mark.parametrize("draw", FAMILIES)
def test_a_key_has_one_answer(draw: Draw) -> None:
    check_one_key_one_answer(draw)


@pytest.mark.parametrize("draw", FAMILIES)
def test_conversations_render_and_are_short(draw: Draw) -> None:
    check_renders(draw)


def test_a_tool_problem_is_any_of_the_families() -> None:
    tasks = {problem.task for problem in drawn(draw_tool_problem)}
    assert tasks == {"function call", "no call", "lookup", "calculator"}


def test_arguments_and_function_stand_in_the_request() -> None:
    for problem, call in calls(draw_function_call):
        request = problem.messages[-1].content
        verb, noun = call.name.split("_")
        assert call.name in request or (verb in request.lower() and noun in request)
        place = 0
        for name, value in call.arguments.items():
            # One after the other, as the user names them; at a sentence's beginning "The name".
            named = re.search(rf"\b{name}\b.*?{re.escape(shown(value))}", request[place:])
            assert named, (request, call.arguments)
            place += named.end()


def test_optional_arguments_are_given_only_if_the_request_names_them() -> None:
    omitted = 0
    for problem, call in calls(draw_function_call):
        (tool,) = (tool for tool in problem.tools if tool.name == call.name)
        assert tool.parameters is not None
        absent = set(tool.parameters["properties"]) - set(call.arguments)
        assert not absent & set(tool.parameters["required"])
        omitted += bool(absent)
    assert omitted > 100


def test_what_comes_back_stands_in_the_answer() -> None:
    for problem, call in calls(draw_function_call) + calls(draw_lookup):
        for name, value in json.loads(call.result).items():
            assert name == "status" or shown(value) in problem.reply.final


def test_other_functions_share_the_verb_or_the_noun() -> None:
    kin = 0
    for problem, call in calls(draw_function_call):
        others = [tool.name.split("_") for tool in problem.tools if tool.name != call.name]
        kin += any(set(other) & set(call.name.split("_")) for other in others)
    assert kin > 400


def test_the_calculator_gets_the_expression_and_its_value_is_the_answer() -> None:
    for problem, call in calls(draw_calculator):
        expression = ast.parse(str(call.arguments["expression"]), mode="eval")
        assert problem.reply.final == str(evaluate(expression.body))
        assert problem.reply.final in call.result


def test_without_a_call_the_answer_is_plain() -> None:
    finals = [problem.reply.final for problem in drawn(draw_no_call)]
    assert all(problem.call is None and problem.tools for problem in drawn(draw_no_call))
    assert sum(final == identity.UNKNOWN for final in finals) > 200
    assert sum(final.isdigit() for final in finals) > 400
    assert sum(final.startswith("I have no function to ") for final in finals) > 400


def test_a_function_that_is_missing_is_not_declared() -> None:
    for problem in drawn(draw_no_call):
        if problem.reply.final.startswith("I have no function to "):
            wanted = problem.reply.final.removeprefix("I have no function to ").rstrip(".").split()
            assert f"{wanted[0]}_{wanted[2]}" not in {tool.name for tool in problem.tools}


def test_a_declaration_as_a_tool() -> None:
    function = Function(
        "find",
        "train",
        (
            Parameter("city", "string", required=True, description="The city."),
            Parameter("size", "enum", required=False, choices=("small", "large")),
        ),
        "Find a train.",
    )
    tool = function.tool()
    assert (tool.name, tool.description) == ("find_train", "Find a train.")
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "The city."},
            "size": {"type": "string", "enum": ["small", "large"]},
        },
        "required": ["city"],
    }


def test_the_first_parameter_is_required() -> None:
    functions = [draw_function(random.Random(seed)) for seed in range(200)]
    assert all(function.parameters[0].required for function in functions)


def test_a_problem_spelled_out() -> None:
    problem = draw_function_call(random.Random(3))
    assert problem.call is not None
    assert problem.messages[-1].content == (
        "I would like to set a machine with volume = 29.4 and date = 2035-09-27."
    )
    assert [tool.name for tool in problem.tools] == ["turn_table", "set_machine", "clean_machine"]
    assert problem.call.thinking.steps == (
        "set_machine fits the request.\nvolume: 29.4\ndate: 2035-09-27"
    )
    assert problem.call.thinking.check == (
        "Check: set_machine(volume number, date string).\nvolume given: 29.4, number\n"
        "date given: 2035-09-27, string\nAll required are given."
    )
    assert problem.call.arguments == {"volume": 29.4, "date": "2035-09-27"}
    assert problem.call.result == '{"id":63}'
    assert problem.reply.thinking.steps == "The result of set_machine: id 63."
    assert problem.reply.thinking.check == (
        "Check: set_machine was called with volume 29.4, date 2035-09-27.\n"
        "It came back with id 63.\nThe answer says just that."
    )
    assert problem.reply.final == "The id is 63."
