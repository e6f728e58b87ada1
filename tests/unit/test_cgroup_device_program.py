"""The program that version 2 asks about devices does what the rules say: it is interpreted here, as the kernel would."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab.cgroups.device_program import ACCESS, KINDS, DeviceProgram, Instruction, program
from kernel_lab.cgroups.devices import USUAL, Rule, parse

WORD, LONG = 2**32 - 1, 2**64 - 1
REQUESTS = ["".join(letters) for length in (1, 2, 3) for letters in itertools.combinations("rwm", length)]


def interpreted(code: DeviceProgram, kind: str, major: int, minor: int, access: str) -> int:
    """The answer of the bytes, by the instruction set's own description (Documentation/bpf/standardization/instruction-set.rst)."""
    context = struct.pack("<III", sum(ACCESS[letter] for letter in access) << 16 | KINDS[kind], major, minor)
    registers = [0xDEAD] * 11
    steps = list(struct.iter_unpack("<BBhi", code.data))
    at = 0
    while True:
        operation, pair, offset, number = steps[at]
        to, of = pair & 0xF, pair >> 4
        immediate = number & LONG  # sign-extended to 64 bits
        at += 1
        match operation:
            case 0x61:
                assert of == 1, "only the context can be read"
                registers[to] = struct.unpack_from("<I", context, offset)[0]
            case 0xBF:
                registers[to] = registers[of]
            case 0xB7:
                registers[to] = immediate
            case 0x57:
                registers[to] &= immediate
            case 0x77:
                registers[to] >>= number
            case 0x55:
                at += offset if registers[to] != immediate else 0
            case 0x56:
                at += offset if registers[to] & WORD != number & WORD else 0
            case 0x45:
                at += offset if registers[to] & immediate else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"no such instruction: {operation:#x}")
        assert offset >= 0, "the verifier takes no loops here"


def allowed(rules: tuple[Rule, ...], kind: str, major: int, minor: int, access: str) -> bool:
    return any(
        rule.kind in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor) and set(access) <= set(rule.access) for rule in rules
    )


majors = st.sampled_from([0, 1, 3, 2**12 - 1]) | st.integers(0, 2**12 - 1)
minors = st.sampled_from([0, 1, 3, 2**20 - 1]) | st.integers(0, 2**20 - 1)
texts = st.builds(
    "{} {}:{} {}".format,
    st.sampled_from("bc"),
    majors | st.just("*"),
    minors | st.just("*"),
    st.lists(st.sampled_from("rwm"), min_size=1).map("".join),
)


@given(st.lists(texts | st.just("a"), max_size=5), st.sampled_from("bc"), majors, minors, st.sampled_from(REQUESTS))
def test_it_answers_as_the_rules_say(rules: list[str], kind: str, major: int, minor: int, access: str) -> None:
    known = parse(rules)
    code = program(known)
    assert interpreted(code, kind, major, minor, access) == allowed(known, kind, major, minor, access)
    for rule in known:  # the requests that are about a rule are rare among all
        asked = (kind if rule.kind == "a" else rule.kind), rule.major or 0, rule.minor or 0, access
        assert interpreted(code, *asked) == allowed(known, *asked)


@given(st.lists(texts | st.just("a"), max_size=5))
def test_every_instruction_can_be_reached_and_none_leads_out(rules: list[str]) -> None:
    code = program(parse(rules))
    reached, todo = set[int](), [0]
    while todo:
        at = todo.pop()
        if at in reached:
            continue
        reached.add(at)
        assert at < len(code)
        if str(code[at]) != "exit":
            todo.append(at + 1)
        if "goto" in str(code[at]):
            todo.append(at + 1 + code[at].offset)
    assert reached == set(range(len(code)))


def test_the_usual_devices() -> None:
    code = program(parse(USUAL))
    assert interpreted(code, "c", 1, 3, "rw") and interpreted(code, "b", 8, 0, "m") and interpreted(code, "c", 136, 7, "rw")
    assert not interpreted(code, "b", 8, 0, "r") and not interpreted(code, "c", 1, 1, "r")


def test_it_is_printed_as_a_listing() -> None:
    lines = str(program(parse(["c 1:3 rw"]))).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [str(number) for number in range(14)]
    assert "55020500 02000000  if r2 != 2 goto +5 " in lines[8] and "c 1:3 rw" in lines[8]
    assert "if r3 & 0x1 goto +4" in lines[9]
    assert "<table" in program(())._repr_html_()


@pytest.mark.parametrize(
    ("instruction", "data", "text"),
    [
        (Instruction(0xB7, 0, number=1), "b700000001000000", "r0 = 1"),
        (Instruction(0x61, 2, 1, 4), "6112040000000000", "r2 = *(u32 *)(r1 + 4)"),
        (Instruction(0x95), "9500000000000000", "exit"),
        (Instruction(0x56, 4, offset=3, number=WORD), "56040300ffffffff", "if w4 != 4294967295 goto +3"),
    ],
)
def test_an_instruction_in_bytes_and_in_words(instruction: Instruction, data: str, text: str) -> None:
    assert (instruction.data.hex(), str(instruction)) == (data, text)
