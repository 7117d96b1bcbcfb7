"""Rules over configuration keys, such as `workers == 1` or `batch_per_worker >= 2 * micro_batches`.

Variants use them to say what they need, sweeps to say which cells they want. A rule is a Python
expression of names, constants, comparisons, arithmetic, `and`/`or`/`not`/`in`, and `min` and `max` of a list; anything
else is refused when the rule is read, so a configuration file can never run code.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import cache
from types import CodeType
from typing import Any

from benchmarks.core.errors import ConfigError

_ALLOWED: tuple[type[ast.AST], ...] = (
    ast.Expression,
    ast.BoolOp,
    ast.UnaryOp,
    ast.BinOp,
    ast.Compare,
    ast.IfExp,
    ast.Constant,
    ast.Name,
    ast.Attribute,
    ast.List,
    ast.Tuple,
    ast.boolop,
    ast.unaryop,
    ast.cmpop,
    ast.expr_context,
    # Operators one by one: `**` and `<<` could ask for an astronomically large number.
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max}


class _KeysToLookups(ast.NodeTransformer):
    """Turn `workers` and `optimizer.lr` into calls of one look-up function."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._lookup(node, node.id)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.args = [self.visit(argument) for argument in node.args]
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return self._lookup(node, ast.unparse(node))

    def _lookup(self, node: ast.expr, key: str) -> ast.AST:
        self.names.add(key)
        call = ast.Call(ast.Name("_key", ast.Load()), [ast.Constant(key)], [])
        return ast.copy_location(call, node)


@cache
def _compile(rule: str) -> tuple[CodeType, frozenset[str]]:
    """The code of a rule, and the keys that it names."""
    try:
        tree = ast.parse(rule, mode="eval")
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"rule {rule!r}: not an expression") from error
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED) and not _is_of_a_list(node):
            raise ConfigError(
                f"rule {rule!r}: {type(node).__name__} is not allowed; use keys, constants, comparisons, + - * / // %, "
                "and, or, not, in, min and max of a list"
            )
    keys = _KeysToLookups()
    return compile(ast.fix_missing_locations(keys.visit(tree)), rule, "eval"), frozenset(keys.names)


def names(rule: str) -> list[str]:
    """The keys that a rule names. Raises ConfigError where it is no allowed expression."""
    return sorted(_compile(rule)[1])


def _is_of_a_list(node: ast.AST) -> bool:
    """Whether a call is `min` or `max` of one thing."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    return node.func.id in _FUNCTIONS and len(node.args) == 1 and not node.keywords


def holds(rule: str, values: Mapping[str, object]) -> bool:
    """Whether `rule` is true of the flat mapping `values` (dotted keys). Raises ConfigError as `value` does."""
    return bool(value(rule, values))


def value(rule: str, values: Mapping[str, object]) -> object:
    """What `rule` amounts to for the flat mapping `values` (dotted keys).

    Raises:
        ConfigError: the rule is no allowed expression, names a key that `values` lacks, or compares what cannot be.
    """
    code, _ = _compile(rule)

    def look_up(key: str) -> object:
        if key not in values:
            raise ConfigError(f"rule {rule!r}: there is no key {key}")
        return values[key]

    lookup: Callable[[str], object] = look_up
    scope: dict[str, Any] = {"__builtins__": {}, "_key": lookup, **_FUNCTIONS}
    try:
        return eval(code, scope)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"rule {rule!r}: {error}") from error
