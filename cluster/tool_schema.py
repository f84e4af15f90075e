"""A tool's parameters: JSON Schema text from a client to a schema that is safe to use.

The text is bounded before anything slow looks at it: checking a schema against its metaschema takes
half a millisecond for each object in it.
"""

import json
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

MAX_SCHEMA_CHARACTERS: Final = 65_536
MAX_SCHEMA_DEPTH: Final = 32
MAX_SCHEMA_NODES: Final = 2_048
MAX_KEY_CHARACTERS: Final = 200

_SHOWN_CHARACTERS: Final = 200


class SchemaProblem(Exception):
    """The schema cannot be used; the message says why, for the client."""


def parse_parameters(text: str) -> dict[str, Any]:
    """Parse JSON Schema text of type "object". Raises SchemaProblem."""
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise SchemaProblem(f"{len(text)} characters, at most {MAX_SCHEMA_CHARACTERS} are allowed")
    schema = _load(text)
    if not isinstance(schema, dict):
        raise SchemaProblem("must be a JSON object")
    _check_bounds(schema)
    if schema.get("type") != "object":
        raise SchemaProblem('must have "type": "object"')
    _check_schema(schema)
    return schema


def _load(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise SchemaProblem(
            f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise SchemaProblem(f"nested deeper than {MAX_SCHEMA_DEPTH} levels") from None
    except ValueError as error:
        raise SchemaProblem(f"not JSON: {_shorten(str(error))}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_bounds(schema: dict[str, Any]) -> None:
    level: list[Any] = [schema]
    nodes = 0
    for _ in range(MAX_SCHEMA_DEPTH):
        nodes += len(level)
        if nodes > MAX_SCHEMA_NODES:
            raise SchemaProblem(f"more than {MAX_SCHEMA_NODES} objects and lists")
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise SchemaProblem(f"nested deeper than {MAX_SCHEMA_DEPTH} levels")


def _children(node: dict[str, Any] | list[Any]) -> Iterator[dict[str, Any] | list[Any]]:
    values = list(node.values()) if isinstance(node, dict) else node
    for key in node if isinstance(node, dict) else ():
        if len(key) > MAX_KEY_CHARACTERS:
            raise SchemaProblem(f"a key is longer than {MAX_KEY_CHARACTERS} characters")
        _check_text(key)
    for value in values:
        if isinstance(value, dict | list):
            yield value
        elif isinstance(value, str):
            _check_text(value)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SchemaProblem("a string holds half of a surrogate pair") from None


def _check_schema(schema: dict[str, Any]) -> None:
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise SchemaProblem(
            f"not a JSON Schema (2020-12): {error.json_path}: {_shorten(error.message)}"
        ) from None
    except (RecursionError, OverflowError, MemoryError) as error:
        # Regular expressions are compiled to check them, and nothing bounds what they ask for.
        raise SchemaProblem(f"a pattern cannot be compiled: {type(error).__name__}") from None


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
