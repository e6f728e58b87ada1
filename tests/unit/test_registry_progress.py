"""What a pull shows to those who watch it: bars on a terminal and in a notebook, lines elsewhere."""

import sys
from io import StringIO

import pytest

from kernel_lab.images.descriptor import OCI_CONFIG, OCI_LAYER, Descriptor, digest_of
from kernel_lab.registry import progress
from kernel_lab.registry.progress import DOWNLOADING, Bars, Lines, automatic

LAYER = Descriptor(OCI_LAYER, digest_of(b"layer"), 1000)
OTHER = Descriptor(OCI_LAYER, digest_of(b"other"), 500)
NAME, OTHERS = LAYER.digest[7:19], OTHER.digest[7:19]


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_for_what_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Screen())
    assert type(automatic()) is Bars
    monkeypatch.setattr(sys, "stdout", StringIO())
    assert type(automatic()) is Lines
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    assert type(automatic()) is Bars


def test_a_bar_moves_and_ends_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    lines: list[str] = []
    bars = Bars(lines.append)
    with bars:
        bars.done(OTHER, "Already exists")
        bars.blob(LAYER, "Pulling fs layer")
        bars.blob(LAYER, DOWNLOADING)
        bars.moved(LAYER, 600)
        bars.moved(LAYER, -100)
        bars.blob(LAYER, DOWNLOADING)
        bars.say("something else")
        bars.done(LAYER, "Pull complete")
    bars.say("Digest: x")
    assert lines == [f"{OTHERS}: Already exists", "Digest: x"]
    shown = screen.getvalue()
    assert f"{NAME}: Downloading:  50%" in shown and "something else\n" in shown
    assert shown.rstrip("\n").endswith(f"{NAME}: Pull complete")


def test_lines_have_neither_bars_nor_configurations() -> None:
    lines: list[str] = []
    shown = Lines(lines.append)
    with shown:
        for blob in (LAYER, Descriptor(OCI_CONFIG, digest_of(b"config"), 10)):
            shown.blob(blob, "Pulling fs layer")
            shown.blob(blob, DOWNLOADING)
            shown.moved(blob, 10)
            shown.done(blob, "Pull complete")
    assert lines == [f"{NAME}: Pulling fs layer", f"{NAME}: Pull complete"]
    assert progress.short("sha512:0123456789abcdef") == "0123456789ab"
