"""A calculator as a tool: arithmetic that a language model wrote, evaluated without running it as a program."""

import ast
import math
import operator
from collections.abc import Callable

BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}

LARGEST = 1e15
"""Numbers beyond it are refused, so that no expression can take long: 9 ** 9 ** 9 has 370 million digits."""


def calculate(expression: str) -> str:
    """The value of an expression of numbers, + - * / // % ** and parentheses; whole results without a point.

    Raises:
        ValueError: for anything else, and for numbers beyond 1e15; ZeroDivisionError as in Python.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression[:40]!r} is no arithmetic expression") from error
    value = _value(tree.body)
    return str(int(value)) if value == int(value) else f"{value:.10g}"


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=bool()):
            raise ValueError(f"{node.value!r} is no number")
        case ast.Constant(value=int() | float() as number):
            return _bounded(number)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in UNARY:
            return UNARY[type(op)](_value(operand))
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            base, exponent = _value(left), _value(right)
            if base and abs(exponent) * abs(math.log10(abs(base))) > math.log10(LARGEST) + 1:
                raise ValueError(f"{base:g} ** {exponent:g} is out of range")
            return _bounded(operator.pow(base, exponent))
        case ast.BinOp(op=op, left=left, right=right) if type(op) in BINARY:
            return _bounded(BINARY[type(op)](_value(left), _value(right)))
        case _:
            raise ValueError(f"{ast.unparse(node)[:40]!r} is no arithmetic")


def _bounded(number: float) -> float:
    if isinstance(number, complex) or not abs(number) <= LARGEST:
        raise ValueError(f"a number is out of range: beyond {LARGEST:g}, or not real")
    return number
