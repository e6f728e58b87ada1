"""A serial console, without a machine: two pipes."""

import os
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO

import pytest

from kernel_lab.machines.console import Console


class Wire:
    """A console, and the machine's side of it."""

    def __init__(self) -> None:
        (ours, self.says), (self.hears, typed) = os.pipe(), os.pipe()
        self.files = [FileIO(ours), FileIO(typed, "w"), FileIO(self.says, "w"), FileIO(self.hears)]
        self.console = Console(self.files[0], self.files[1])

    def say(self, data: bytes) -> None:
        self.files[2].write(data)

    def close(self) -> None:
        self.files[2].close()
        self.console.join(5)
        for file in self.files:
            with suppress(OSError):
                file.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


def test_lines_with_the_moment_when_they_came(wire: Wire) -> None:
    wire.say(b"one\r\ntw")
    first = wire.console.wait("one", 5)
    wire.say(b"o\n")
    second = wire.console.wait("two", 5)
    assert (first.text, second.text) == ("one", "two") and 0 <= first.seconds <= second.seconds
    assert wire.console.lines[1].text == "two"


def test_a_prompt_is_found_before_its_line_has_an_end(wire: Wire) -> None:
    wire.say(b"done\n/ # ")
    assert wire.console.wait("^/ # $", 5).text == "/ # "
    assert str(wire.console) == "done\n/ # "


def test_what_is_typed_reaches_the_machine(wire: Wire) -> None:
    wire.console.write("reboot\n")
    assert os.read(wire.hears, 100) == b"reboot\n"


def test_what_moves_a_terminals_cursor_is_left_out(wire: Wire) -> None:
    wire.say(b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\x07\tx\r\n")
    assert wire.console.wait("SeaBIOS", 5).text == "SeaBIOS\tx"


def test_a_letter_in_two_pieces(wire: Wire) -> None:
    wire.say("gr\u00fc".encode()[:-1])
    wire.say("gr\u00fc\u00df\n".encode()[3:])
    assert wire.console.wait("gr", 5).text.startswith("gr\u00fc")


def test_nothing_of_the_kind_is_said_in_time(wire: Wire) -> None:
    wire.say(b"panic: no init\n")
    wire.console.wait("panic", 5)
    with pytest.raises(TimeoutError, match=r"has not said 'login:' in 0 s; it said last:\npanic: no init"):
        wire.console.wait("login:", 0)


def test_the_machine_ends_before(wire: Wire) -> None:
    wire.close()
    with pytest.raises(EOFError, match=r"ended without 'login:' on its console; it said last:\nnothing"):
        wire.console.wait("login:", 5)
