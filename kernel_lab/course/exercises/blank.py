"""Is an answer still the blank that the notebook came with?"""

import dis
from types import CodeType, FunctionType

# What CPython 3.11 to 3.14 makes of a body that is `...`, `pass`, a docstring, or `yield ...`.
IDLE = {"RESUME", "NOP", "CACHE", "NOT_TAKEN", "POP_TOP", "LOAD_CONST", "LOAD_COMMON_CONSTANT", "RETURN_VALUE", "RETURN_CONST"}
IDLE |= {"RETURN_GENERATOR", "YIELD_VALUE", "CALL_INTRINSIC_1", "RERAISE"}


def is_blank(answer: object) -> bool:
    """`...` itself; a function, class, list or dict that still holds one; a function that does nothing."""
    if answer is ...:
        return True
    if isinstance(answer, FunctionType):
        return _is_idle(answer.__code__) or _has_dots(answer.__code__)
    if isinstance(answer, type):
        return any(is_blank(value) for value in vars(answer).values() if value is ... or isinstance(value, FunctionType | property))
    if isinstance(answer, property):
        return is_blank(answer.fget)
    if isinstance(answer, list | tuple | set):
        return any(item is ... for item in answer)
    if isinstance(answer, dict):
        return any(value is ... for value in answer.values())
    return False


def _is_idle(code: CodeType) -> bool:
    steps = list(dis.get_instructions(code))
    says_nothing = all(step.argval in (None, ...) for step in steps if step.opname in ("LOAD_CONST", "RETURN_CONST"))
    return says_nothing and all(step.opname in IDLE for step in steps)


def _has_dots(code: CodeType) -> bool:
    return any(const is ... or (isinstance(const, CodeType) and _has_dots(const)) for const in code.co_consts)
