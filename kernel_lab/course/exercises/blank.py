"""Is an answer still the blank that the notebook came with?"""

import ast
import inspect
from textwrap import dedent
from types import CodeType, FunctionType


def is_blank(answer: object) -> bool:
    """`...` itself, or something that still holds one: a list, a dict, a class, the code of a function or method."""
    if isinstance(answer, FunctionType):
        return _code_has_dots(answer)
    if isinstance(answer, type):
        return any(is_blank(_function(value)) for value in vars(answer).values() if not isinstance(value, type))
    if isinstance(answer, dict):
        return any(value is ... for value in answer.values())
    if isinstance(answer, list | tuple | set):
        return any(item is ... for item in answer)
    return answer is ...


def _function(value: object) -> object:
    """The function in a property, a class method or a static method; anything else as it is."""
    return value.fget if isinstance(value, property) else value.__func__ if isinstance(value, classmethod | staticmethod) else value


def _code_has_dots(function: FunctionType) -> bool:
    # The compiler drops a statement that is only `...`: the source still shows it. A function without a source shows what its code kept.
    try:
        return _tree_has_dots(ast.parse(dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError):
        return _constants_have_dots(function.__code__)


def _tree_has_dots(node: ast.AST) -> bool:
    if isinstance(node, ast.Subscript):  # in `tuple[int, ...]` the dots are no blank
        return _tree_has_dots(node.value)
    return (isinstance(node, ast.Constant) and node.value is ...) or any(map(_tree_has_dots, ast.iter_child_nodes(node)))


def _constants_have_dots(code: CodeType) -> bool:
    return any(const is ... or (isinstance(const, CodeType) and _constants_have_dots(const)) for const in code.co_consts)
