"""An error of a build says where in the Dockerfile it comes from."""

from collections.abc import Iterator
from contextlib import contextmanager

from kernel_lab.images.instructions import Instruction
from kernel_lab.kernel.errors import KernelError, UsageError


class BuildError(RuntimeError):
    """A step that has failed. `code`: what the command of a RUN has ended with; of anything else, 1."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def placed(instruction: Instruction) -> Iterator[None]:
    """Errors within begin with file, line and instruction."""
    here = f"{instruction.statement.file}:{instruction.line}: "
    try:
        yield
    except UsageError as error:
        if str(error).startswith(here):
            raise
        raise instruction.wrong(str(error)) from error
    except BuildError as error:
        raise error if str(error).startswith(here) else BuildError(f"{here}{instruction.keyword}: {error}", error.code) from error
    except (KernelError, OSError) as error:
        raise BuildError(f"{here}{instruction.keyword}: {error}") from error
