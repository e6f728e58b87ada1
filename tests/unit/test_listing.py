"""Machine code that can be read: each line of each listing says what its bytes do."""

import re

import capstone
import pytest
from emulator import PROCESSORS, Processor
from rows import WORD

from kernel_lab.kernel import loop, reaper
from kernel_lab.kernel.loop.listing import Listing, labels

both = pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.name)


SYNONYMS = {"jz": "je", "jnz": "jne", "jc": "jb", "jnc": "jae"}  # one instruction, two names


def spelled(text: str, places: dict[str, int]) -> list[str | int]:
    """An instruction in one spelling: no sizes, labels as offsets, numbers without a sign, jumps by the names that capstone uses."""

    def word(text: str) -> str | int:
        if re.fullmatch(r"-?(0x[0-9a-f]+|[0-9]+)", text):
            return int(text, 0) & WORD
        return places.get(text, SYNONYMS.get(text, text))

    return [word(one) for one in re.findall(r"-?\w+|[^\w\s]", re.sub(r"(qword|dword|byte) ptr |#", "", text))]


@both
@pytest.mark.parametrize("listings", [loop.LISTINGS, reaper.LISTINGS], ids=["loop", "reaper"])
def test_each_line_says_in_assembly_what_its_bytes_do(processor: Processor, listings: dict[str, Listing]) -> None:
    mode = {"x86_64": (capstone.CS_ARCH_X86, capstone.CS_MODE_64), "aarch64": (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)}
    reader = capstone.Cs(*mode[processor.name])
    lines, at = listings[processor.name], 0
    places = labels(lines)
    for octets, text, _ in lines:
        found = list(reader.disasm(bytes.fromhex(octets), at))
        assert sum(one.size for one in found) == len(bytes.fromhex(octets))
        if text.endswith(":"):
            assert found == []
        else:
            (one,) = found
            assert spelled(f"{one.mnemonic} {one.op_str}", {}) == spelled(text, places)
        at += len(bytes.fromhex(octets))


@both
def test_the_loop_is_small_starts_with_a_landing_pad_and_is_shown_whole(processor: Processor) -> None:
    code, name = loop.code(processor.name), processor.name
    pad = {"x86_64": bytes.fromhex("f30f1efa"), "aarch64": bytes.fromhex("5f2403d5")}[name]
    assert len(code) < 300
    for place in (loop.START[name], loop.WALK[name]):
        assert code[place : place + 4] == pad
    shown = loop.listing(name)
    assert "".join(re.findall(r"^ +[0-9a-f]+  ((?:[0-9a-f]{2} )+)", shown, re.MULTILINE)).replace(" ", "") == code.hex()
    for _, text, why in loop.LISTINGS[name]:
        assert text in shown and why in shown
