"""Why a table ended before its command: the row that the kernel refused, or the command that cannot be executed."""

from errno import EACCES, ENOENT, ENOTDIR

from kernel_lab.command import Command
from kernel_lab.kernel import executables, rules
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import CLONE
from kernel_lab.kernel.program import Program, refused

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as every shell has them (POSIX, 2.8.2)


class CommandError(KernelError):
    """A command that cannot be executed; `code` is what a shell would end with."""

    code: int
    line: str

    def __str__(self) -> str:
        return self.line


def refusal(program: Program, command: Command, flags: CLONE) -> KernelError | None:
    """The error of a table that was stopped, from its answers; None for one that was not."""
    answers = program.answers
    for index, (row, answer) in enumerate(zip(program, answers, strict=True)):
        if answer is not None and refused(answer) and -answer not in row.tolerate:
            if row.call == "execve":
                return _command_error(program, index, command, flags)
            return rules.refused(row, index, -answer, rules.Context(flags, program.rows[:index]))
    return None


def _command_error(program: Program, last: int, command: Command, flags: CLONE) -> CommandError:
    answers = program.answers
    tried = [index for index in range(last + 1) if program[index].call == "execve"]
    # A file that is there and cannot be executed says more than the places of PATH where there is none, or that may not be searched.
    index = next((index for index in tried if _is_there(program, index, flags)), last)
    number = -(answers[index] or 0)
    missing = number in (ENOENT, ENOTDIR) or (number == EACCES and len(tried) > 1 and not _is_there(program, index, flags))
    cause = rules.refused(program[index], index, number, rules.Context(flags, program.rows[:index]))
    error = CommandError(number, cause.call, index=index, row=cause.row, rule=cause.rule, look=cause.look)
    error.code = NOT_FOUND if missing else NOT_EXECUTABLE
    name = command.argv[0]
    plain = "not found" if missing else "permission denied" if number == EACCES else (cause.strerror or "").lower()
    there = " ".join(filter(None, (cause.rule, cause.look)))
    error.line = f"{name}: {plain}" if ("/" not in name and missing) or not there else f"{name}: {plain}: {there}"
    return error


def _is_there(program: Program, index: int, flags: CLONE) -> bool:
    answer = program.answers[index]
    if answer is None or -answer in (ENOENT, ENOTDIR):
        return False
    root, _ = rules.Context(flags, program.rows[:index]).tree()
    return -answer != EACCES or executables.exists(str(program[index].args[0]), root)
