"""Symbolic dimensions: fixed sizes, symbols, and expressions of symbols such as `8*h`, `h*w` or `(h + 1)//2`."""

import ast
import operator
from collections.abc import Iterable, Mapping
from functools import lru_cache

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


class DimensionError(ValueError):
    """Shapes that contradict a specification or one another."""


def is_dimension(value: int | str) -> bool:
    """Whether `value` is a positive number or a readable expression of symbols."""
    if isinstance(value, int):
        return value > 0
    try:
        return len(value) <= 200 and bool(symbols(value))
    except DimensionError:
        return False


def symbols(expression: str) -> frozenset[str]:
    """The names an expression uses. Raises DimensionError when it is none."""
    tree = _parse(expression)
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def evaluate(dimension: int | str, sizes: Mapping[str, int]) -> int | None:
    """The size a dimension has when its symbols have these sizes; None if one of them is not known."""
    if isinstance(dimension, int):
        return dimension
    if not symbols(dimension) <= sizes.keys():
        return None
    return _value(_parse(dimension), sizes)


def solve(shapes: Iterable[tuple[str, tuple[int | str, ...], tuple[int, ...]]]) -> dict[str, int]:
    """Find the size of each symbol from concrete shapes and check that all of them agree.

    `shapes` yields (tensor name, specified shape, actual shape). Plain symbols are read off first, then symbols with a
    factor (`8*h`); then every expression whose symbols are known is checked. Raises DimensionError, naming the tensor.
    """
    entries = []
    for name, specified, actual in shapes:
        if len(specified) != len(actual):
            raise DimensionError(f"{name} has shape {list(actual)}, expected {len(specified)} axes {_show(specified)}")
        entries += [(name, axis, *pair, specified) for axis, pair in enumerate(zip(specified, actual, strict=True))]
    sizes: dict[str, int] = {}
    for _, _, dimension, size, _ in entries:
        if isinstance(dimension, str) and dimension.isidentifier():
            sizes.setdefault(dimension, size)
    for _, _, dimension, size, _ in entries:
        factor, symbol = _linear(dimension)
        if symbol is not None and size % factor == 0:
            sizes.setdefault(symbol, size // factor)
    for name, axis, dimension, size, specified in entries:
        expected = evaluate(dimension, sizes)
        if expected is not None and expected != size:
            known = ", ".join(f"{symbol}={value}" for symbol, value in sorted(sizes.items()))
            raise DimensionError(
                f"{name} has size {size} on axis {axis}, expected {expected}"
                f" (specified as {_show(specified)}{', with ' + known if known else ''})"
            )
    return sizes


def _show(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _linear(dimension: int | str) -> tuple[int, str | None]:
    """(factor, symbol) of an expression such as `8*h` or `h*8`; (1, None) for all else."""
    if isinstance(dimension, str):
        node = _parse(dimension)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for constant, name in ((node.left, node.right), (node.right, node.left)):
                if isinstance(constant, ast.Constant) and isinstance(name, ast.Name) and constant.value > 0:
                    return constant.value, name.id
    return 1, None


@lru_cache(maxsize=1024)
def _parse(expression: str) -> ast.expr:
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise DimensionError(f"{expression!r} is not a dimension") from None
    for node in ast.walk(tree):
        readable = (
            isinstance(node, ast.Name)
            or (isinstance(node, ast.Constant) and type(node.value) is int)
            or (isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS)
            or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub))
            or isinstance(node, (ast.operator, ast.unaryop, ast.expr_context))
        )
        if not readable:
            raise DimensionError(f"{expression!r} is not a dimension")
    return tree


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return sizes[node.id]
        case ast.UnaryOp():
            return -_value(node.operand, sizes)
    left, right = _value(node.left, sizes), _value(node.right, sizes)
    if isinstance(node.op, ast.FloorDiv) and right == 0:
        raise DimensionError(f"{ast.unparse(node)} divides by zero")
    return _OPERATORS[type(node.op)](left, right)
