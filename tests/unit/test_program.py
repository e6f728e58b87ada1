"""The table of system calls as data: made, printed, compared, laid out in memory, without a call to the kernel."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import CLONE, MS
from kernel_lab.kernel.memory import INDIRECT, JUMP, NOT_RUN, RESULT, ROW, STORE, TOLERATE, Image, Layout
from kernel_lab.kernel.program import Buffer, Handle, Program, Strings, call, refused
from kernel_lab.kernel.structs import Struct, ifreq

SOCKET = Handle("socket")
TABLE = Program(
    [
        call("mount", None, "/", None, MS.REC | MS.PRIVATE, why="stay here"),
        call("socket", 2, 1, 0, into=SOCKET),
        call("ioctl", SOCKET, 0x8914, ifreq("lo"), tolerate={17}),
        call("execve", "/bin/a \"b\"\n", Strings(("a", "b")), Strings(("A=1",), "environment")),
    ]
)


def test_text_names_calls_flags_strings_and_structures() -> None:
    lines = str(TABLE).splitlines()
    assert lines[2].split(maxsplit=2)[:2] == ["0", "mount"]
    assert 'NULL, "/", NULL, MS_REC|MS_PRIVATE' in lines[2] and lines[2].rstrip().endswith("stay here")
    assert "socket, 35092, " in lines[4]
    assert '"/bin/a \\"b\\"\\n", ["a", "b"], environment' in lines[5]


def test_html_escapes_what_a_string_holds() -> None:
    assert "<script>" not in Program([call("chdir", "<script>")])._repr_html_()
    assert "&lt;script&gt;" in Program([call("chdir", "<script>")])._repr_html_()


def test_explain_is_a_sentence_a_row() -> None:
    sentences = TABLE.explain().splitlines()
    assert len(sentences) == len(TABLE) and all(sentence.endswith(".") for sentence in sentences)
    assert "EEXIST is no failure" in sentences[2]


def test_answers_are_shown_by_name() -> None:
    ran = TABLE.with_results([0, 7, -17, -2])
    answers = [line.split()[-1] if index else "" for index, line in enumerate(str(ran).splitlines()[2:])]
    assert "EEXIST (tolerated)" in str(ran) and answers[1] == "socket" and "ENOENT" in str(ran)
    assert ran.answer("execve") == -2 and ran == TABLE


def test_equality_is_by_content() -> None:
    assert Program([call("chdir", "/")]) == Program([call("chdir", "/")]) != Program([call("chdir", "/tmp")])
    assert hash(Program([call("chdir", "/")])) == hash(Program([call("chdir", "/")]))


def test_slices_and_sums_are_programs() -> None:
    assert isinstance(TABLE[1:3], Program) and [row.call for row in TABLE[1:3]] == ["socket", "ioctl"]
    assert len(TABLE + Program([call("chdir", "/")])) == len(TABLE) + 1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: call("mounted", "/"), "mount"),
        (lambda: call("mount", 1, 2, 3, 4, 5, 6, 7), "at most 6"),
        (lambda: call("chdir", "a\0b"), "NUL"),
        (lambda: call("chdir", 3.5), "no argument"),
        (lambda: call("chdir", True), "no argument"),
        (lambda: call("chdir", 2**64), "64-bit"),
        (lambda: call("chdir", "/", tolerate={64}), "1 to 63"),
        (lambda: call("execve", "/", Strings(("a\0",))), "NUL"),
        (lambda: Program(["chdir"]), "row 0"),
        (lambda: Program([call("getpid", positive="nowhere")]), "nowhere"),
    ],
)
def test_what_is_no_row_is_refused(make, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=text):
        make()


def test_refusals_are_what_the_kernel_says_they_are() -> None:
    assert refused(-1) and refused(-4095) and not refused(0) and not refused(-4096) and not refused(None)


def words(image: Image, row: int) -> tuple[int, ...]:
    return struct.unpack_from("<12q", image.raw(), row * ROW)


def at(image: Image, address: int, size: int) -> bytes:
    return image.raw()[address - image.address : address - image.address + size]


def test_rows_in_memory_point_to_their_strings_cells_and_labels() -> None:
    table = Program(
        [
            call("getpid", into=SOCKET, positive="end"),
            call("chdir", "/tmp", tolerate={2, 20}),
            call("close", SOCKET),
            call("exit_group", 0, label="end"),
        ]
    )
    image = Image(Layout(table, CLONE(0), (Handle("given"),)))
    image.reset(33)
    first, second, third, last = (words(image, row) for row in range(4))
    assert first[JUMP] == image.address + 3 * ROW and first[STORE] == third[1]
    assert at(image, second[1], 5) == b"/tmp\0" and second[TOLERATE] == 1 << 2 | 1 << 20
    assert third[INDIRECT] == 1 and second[INDIRECT] == 0
    assert all(row[RESULT] == NOT_RUN for row in (first, second, third, last))
    assert image.cell(Handle("given")) == 33 and image.cell(SOCKET) == -1


def test_argument_arrays_end_with_a_null_pointer() -> None:
    image = Image(Layout(Program([call("execve", "/a", Strings(("a", "bb")), Strings(()))])))
    _, _, argv, envp, *_ = words(image, 0)
    pointers = struct.unpack("<3q", at(image, argv, 24))
    assert [at(image, pointer, 3)[:2] for pointer in pointers[:2]] == [b"a\0", b"bb"] and pointers[2] == 0
    assert at(image, envp, 8) == bytes(8)


def test_a_handle_that_nobody_fills_is_an_error() -> None:
    with pytest.raises(LookupError, match="nobody"):
        Layout(Program([call("close", Handle("nobody"))]))


def test_reset_forgets_what_a_run_has_written() -> None:
    buffer = Buffer("buffer", 8, fill=b"\1")
    image = Image(Layout(Program([call("read", 0, buffer, 8)])))
    clean = image.raw()
    import ctypes

    ctypes.memset(image.buffer(buffer), 0xFF, 8)
    assert image.layout.results(image.raw()).buffers[buffer] == b"\xff" * 8
    image.reset()
    assert image.raw() == clean and image.layout.results(clean).buffers[buffer] == b"\1" + bytes(7)


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=20).filter(lambda data: b"\0" not in data),
    st.builds(Struct, st.binary(min_size=1, max_size=40), st.just("{}")),
)


@given(st.lists(st.lists(VALUES, max_size=6), min_size=1, max_size=8))
def test_any_arguments_come_back_from_memory(rows: list[list[object]]) -> None:
    image = Image(Layout(Program([call("getpid", *row) for row in rows])))
    for number, row in enumerate(rows):
        for word, arg in zip(words(image, number)[1:], row, strict=False):
            if arg is None:
                assert word == 0
            elif isinstance(arg, int):
                assert word % 2**64 == arg % 2**64
            else:
                data = arg.data if isinstance(arg, Struct) else (arg if isinstance(arg, bytes) else arg.encode()) + b"\0"
                assert at(image, word, len(data)) == data
