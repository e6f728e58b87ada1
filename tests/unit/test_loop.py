"""The loop under emulation, on both processors: the walk row by row, clone3's two sides, and any table against an interpreter."""

import signal
from collections.abc import Iterable, Sequence

import pytest
from emulator import DATA, HALT, PROCESSORS, STACK, WORD, Emulator, Ended, Processor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import NOT_RUN, RESULT, SIZE, Row, signed

from kernel_lab.kernel import loop

CELLS, ROWS = DATA, DATA + 0x1000
BIG = 2**47 + 4096

both = pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.name)


class Table:
    """A table walked in the emulator, by a kernel that gives the listed answers and then ends the process."""

    def __init__(self, processor: Processor, rows: Sequence[Row], answers: Iterable[int] = (), cells: Sequence[int] = (0,) * 8) -> None:
        self.rows, self.answers = rows, iter(answers)
        self.exit_group = processor.calls["exit_group"]
        self.machine = Emulator(processor, loop.code(processor.name), self.kernel)
        self.machine.put(CELLS, *cells)
        for i, row in enumerate(rows):
            self.machine.put(ROWS + SIZE * i, *row.words(ROWS, CELLS))
        self.machine.set(processor.stack, STACK + 0x8000)
        self.machine.set(processor.parameters[0], ROWS)
        self.machine.run(loop.WALK[processor.name])
        assert self.machine.ended

    def kernel(self, number: int, arguments: tuple[int, ...]) -> int:
        if number == self.exit_group:
            raise Ended
        for answer in self.answers:
            return answer
        raise Ended

    @property
    def calls(self) -> list[tuple[int, tuple[int, ...]]]:
        return self.machine.calls

    @property
    def stopped(self) -> bool:
        """Whether the loop gave up, rather than a row or the kernel having ended it."""
        number, arguments = self.calls[-1]
        return (number, arguments[0]) == (self.exit_group, 127)

    @property
    def ran(self) -> list[int]:
        """The numbers of the rows that were called, the loop's own exit left out."""
        return [number for number, _ in (self.calls[:-1] if self.stopped else self.calls)]

    def results(self) -> list[int]:
        words = self.machine.words(ROWS, 12 * len(self.rows))
        return [signed(words[12 * i + RESULT]) for i in range(len(self.rows))]

    def cell(self, number: int) -> int:
        return signed(self.machine.words(CELLS + 8 * number, 1)[0])


# The walk, row by row


@both
def test_arguments_arrive_in_their_registers_and_answers_in_the_results(processor: Processor) -> None:
    rows = [Row(1001, (1, 2, 3, 4, 5, 6)), Row(1002, (WORD, BIG, 0, 2**63, 7, 2**32)), Row(1003)]
    table = Table(processor, rows, [0, 12])
    assert table.calls == [(row.number, row.arguments) for row in rows]
    assert table.results() == [0, 12, NOT_RUN]


@both
@pytest.mark.parametrize("argument", range(6))
def test_an_indirect_argument_is_loaded_from_its_cell_just_before_the_call(processor: Processor, argument: int) -> None:
    def with_cell(number: int, cell: int) -> Row:
        return Row(number, tuple(cell if i == argument else 100 + i for i in range(6)), indirect=1 << argument)

    table = Table(processor, [Row(1, store=3), with_cell(2, 3), with_cell(3, 4)], [BIG, 0], cells=[0, 0, 0, 11, WORD - 5, 0, 0, 0])
    for call, value in zip(table.calls[1:], [BIG, WORD - 5], strict=True):
        assert call[1] == tuple(value if i == argument else 100 + i for i in range(6))


@both
def test_all_six_arguments_may_be_indirect(processor: Processor) -> None:
    table = Table(processor, [Row(1, (5, 4, 3, 2, 1, 0), indirect=0b111111)], cells=[10, 11, 12, 13, 14, 15])
    assert table.calls == [(1, (15, 14, 13, 12, 11, 10))]


@both
def test_the_answer_is_stored_in_the_cell_and_nowhere_else(processor: Processor) -> None:
    table = Table(processor, [Row(1, store=2), Row(2), Row(3)], [BIG, 5], cells=[7] * 8)
    assert [table.cell(i) for i in range(8)] == [7, 7, BIG, 7, 7, 7, 7, 7]


@both
@pytest.mark.parametrize("errno", [1, 2, 31, 32, 62, 63, 64, 65, 127, 128, 133, 512, 4095])
def test_an_error_stops_the_loop_with_127(processor: Processor, errno: int) -> None:
    everything_else = WORD & ~(1 << errno)
    for tolerate in (0, everything_else) if errno < 64 else (0, WORD):
        table = Table(processor, [Row(1), Row(2, store=0, jump=0, tolerate=tolerate), Row(3)], [0, -errno])
        assert table.ran == [1, 2]
        assert table.stopped
        assert table.results() == [0, -errno, NOT_RUN]


@both
def test_a_tolerated_error_goes_on_with_the_next_row(processor: Processor) -> None:
    for errno in range(1, 64):
        table = Table(processor, [Row(1, store=1, jump=0, tolerate=1 << errno), Row(2)], [-errno])
        assert table.ran == [1, 2]
        assert table.results() == [-errno, NOT_RUN]
        assert table.cell(1) == -errno


@both
@pytest.mark.parametrize("answer", [1, 4095, 4096, BIG, 2**63 - 1, -4096, -(2**63), -BIG])
def test_what_is_not_between_minus_4095_and_minus_1_is_no_error(processor: Processor, answer: int) -> None:
    table = Table(processor, [Row(1, store=0), Row(2)], [answer])
    assert table.ran == [1, 2]
    assert table.results()[0] == table.cell(0) == answer


@both
@pytest.mark.parametrize(
    ("answer", "then"), [(1, 3), (BIG, 3), (2**63 - 1, 3), (0, 2), (-1, 2), (-4095, None), (-4096, 2), (-(2**63), 2)]
)
def test_only_a_positive_answer_jumps(processor: Processor, answer: int, then: int | None) -> None:
    table = Table(processor, [Row(1, jump=2, tolerate=0b10), Row(2), Row(3)], [answer])
    assert table.ran == ([1] if then is None else [1, then])
    assert table.stopped is (then is None)


@both
def test_a_jump_may_go_back(processor: Processor) -> None:
    assert Table(processor, [Row(1), Row(2, jump=0), Row(3)], [0, 5, 0, 0]).ran == [1, 2, 1, 2, 3]


@both
def test_the_loop_asks_again_where_a_filter_refuses_even_its_exit(processor: Processor) -> None:
    exits = []

    def kernel(number: int, arguments: tuple[int, ...]) -> int:
        if number == processor.calls["exit_group"]:
            exits.append(arguments[0])
            if len(exits) == 3:
                raise Ended
        return -1

    machine = Emulator(processor, loop.code(processor.name), kernel)
    machine.put(ROWS, *Row(1).words(ROWS, CELLS))
    machine.set(processor.parameters[0], ROWS)
    machine.run(loop.WALK[processor.name])
    assert exits == [127, 127, 127]


# clone3 and its two sides

OLD_MASK, ALL_SIGNALS, CLONE_ARGS = DATA + 0x8000, DATA + 0x8010, DATA + 0x8100
SP = STACK + 0x8000


class Started:
    """The loop entered at its start, as C would, by a kernel in which clone3 gives `answer`."""

    def __init__(self, processor: Processor, answer: int) -> None:
        self.processor, self.answer = processor, answer
        self.stack_at_clone: int | None = None
        self.cloned_after = 0
        self.machine = machine = Emulator(processor, loop.code(processor.name), self.kernel)
        machine.put(ROWS, *Row(1001, (1, 2, 3, 4, 5, 6), store=0).words(ROWS, CELLS), *Row(1002).words(ROWS, CELLS))
        machine.put(ALL_SIGNALS, WORD)
        for i, register in enumerate(processor.saved):
            machine.set(register, 0x1111 * (i + 1))
        machine.set(processor.stack, SP)
        if processor.name == "x86_64":
            machine.put(SP, HALT)
        else:
            machine.set(processor.saved[-1], HALT)
        for register, value in zip(processor.parameters, (CLONE_ARGS, 88, ROWS, ALL_SIGNALS, OLD_MASK), strict=False):
            machine.set(register, value)
        self.before = [machine.get(register) for register in processor.saved]
        machine.run(loop.START[processor.name])

    def kernel(self, number: int, arguments: tuple[int, ...]) -> int:
        calls = self.processor.calls
        if number == calls["clone3"]:
            self.stack_at_clone, self.cloned_after = self.machine.get(self.processor.stack), len(self.machine.writes)
            return self.answer
        if number == 1001:
            return 77
        if number == 1002:
            raise Ended
        return 0

    @property
    def calls(self) -> list[tuple[int, tuple[int, ...]]]:
        """Each call with as many arguments as it has."""
        needs = {self.processor.calls["rt_sigprocmask"]: 4, self.processor.calls["clone3"]: 2}
        return [(number, arguments[: needs.get(number, 6)]) for number, arguments in self.machine.calls]


@both
@pytest.mark.parametrize("answer", [4711, 1, 2**22, -1, -11, -22, -4095])
def test_the_parent_returns_what_clone3_answered_with_everything_as_it_was(processor: Processor, answer: int) -> None:
    started, mask = Started(processor, answer), processor.calls["rt_sigprocmask"]
    assert started.calls == [
        (mask, (signal.SIG_BLOCK, ALL_SIGNALS, OLD_MASK, 8)),
        (processor.calls["clone3"], (CLONE_ARGS, 88)),
        (mask, (signal.SIG_SETMASK, OLD_MASK, 0, 8)),
    ]
    machine = started.machine
    assert not machine.ended
    assert signed(machine.get(processor.answer)) == answer
    assert [machine.get(register) for register in processor.saved] == started.before
    popped = 8 if processor.name == "x86_64" else 0  # the return address
    assert machine.get(processor.stack) == SP + popped
    assert machine.words(ROWS, 12) == [word & WORD for word in Row(1001, (1, 2, 3, 4, 5, 6), store=0).words(ROWS, CELLS)]


@both
def test_the_child_walks_from_the_first_row_and_leaves_the_stack_alone(processor: Processor) -> None:
    started = Started(processor, 0)
    machine = started.machine
    assert machine.ended
    assert [number for number, _ in started.calls[2:]] == [1001, 1002]
    assert started.calls[2][1] == (1, 2, 3, 4, 5, 6)
    assert started.stack_at_clone == machine.get(processor.stack) == SP
    assert machine.writes[started.cloned_after :] == [(ROWS + 8 * RESULT, 8), (CELLS, 8)]


@both
def test_the_walk_touches_rows_and_cells_and_nothing_else(processor: Processor) -> None:
    rows = [Row(1, store=0), Row(2, (0,) * 6, indirect=63, store=5, jump=3), Row(3), Row(4, tolerate=WORD), Row(5, store=1)]
    table = Table(processor, rows, [3, 4, -9, -64])
    machine = table.machine
    results, cells = {(ROWS + SIZE * i + 8 * RESULT, 8) for i in range(len(rows))}, {(CELLS + 8 * i, 8) for i in range(8)}
    assert set(machine.writes) <= results | cells
    for address, size in machine.reads:
        assert CELLS <= address <= address + size <= CELLS + 64 or ROWS <= address <= address + size <= ROWS + SIZE * len(rows)
    assert machine.get(processor.stack) == SP


@both
def test_both_sides_together_execute_all_of_the_code_and_nothing_beyond(processor: Processor) -> None:
    ran = Started(processor, 5).machine.executed | Started(processor, 0).machine.executed
    ran |= Table(processor, [Row(1), Row(2, indirect=63, store=0, jump=2), Row(3, tolerate=1 << 9), Row(4), Row(5)], [0, 1, -9, -9]).machine.executed
    last_jump = {"x86_64": 2, "aarch64": 4}[processor.name]  # taken only where exit_group is refused
    assert ran == set(range(len(loop.code(processor.name)) - last_jump))


# Any table, against an interpreter in Python


def interpret(rows: Sequence[Row], answers: Sequence[int], cells: Sequence[int]) -> tuple[list[object], list[int], list[int], bool]:
    """What the loop should do: the calls, the results, the cells, and whether it stopped by itself."""
    memory, results, calls, at = list(cells), [NOT_RUN] * len(rows), [], 0
    for answer in [*answers, None]:
        row = rows[at]
        calls.append((row.number, tuple((memory[v] if row.indirect >> i & 1 else v) & WORD for i, v in enumerate(row.arguments))))
        if answer is None or at == len(rows) - 1:
            break
        results[at] = answer
        if row.store is not None:
            memory[row.store] = answer
        errno = -answer if -4095 <= answer <= -1 else 0
        if errno and not (errno < 64 and row.tolerate >> errno & 1):
            return calls, results, memory, True
        at = row.jump if answer > 0 and row.jump is not None else at + 1
    return calls, results, memory, False


ANSWERS = st.one_of(
    st.integers(-70, 70),
    st.integers(-4100, -4090),
    st.sampled_from([BIG, 2**63 - 1, -(2**63), -4096, -4095, -64, -63]),
    st.integers(-(2**63), 2**63 - 1),
)


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    size = draw(st.integers(1, 6))

    def row(number: int) -> Row:
        indirect = draw(st.integers(0, 63))
        values = [draw(st.integers(0, 7) if indirect >> i & 1 else st.integers(0, WORD)) for i in range(6)]
        tolerate = draw(st.one_of(st.just(0), st.just(WORD), st.integers(0, WORD)))
        return Row(number, tuple(values), indirect, draw(st.none() | st.integers(0, 7)), draw(st.none() | st.integers(0, size)), tolerate)

    return [*(row(10_000 + i) for i in range(size)), Row(20_000)]


@pytest.mark.slow
@both
@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(rows=tables(), answers=st.lists(ANSWERS, max_size=12), cells=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=8, max_size=8))
def test_any_table_is_walked_as_the_interpreter_walks_it(processor: Processor, rows: list[Row], answers: list[int], cells: list[int]) -> None:
    """The last row plays execve: when it is reached, the process is no longer the loop's."""
    rows = [*rows[:-1], Row(processor.calls["exit_group"], (1,) * 6)]
    calls, results, memory, stopped = interpret(rows, answers, cells)
    table = Table(processor, rows, answers, cells)
    assert (table.calls[:-1] if table.stopped else table.calls) == calls
    assert table.results() == results
    assert [table.cell(i) for i in range(8)] == memory
    assert table.stopped is stopped
    assert max(table.machine.executed) < len(loop.code(processor.name))
