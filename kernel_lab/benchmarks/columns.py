"""What is measured of each runner: a column is a function of its boxes, and says what it has found as times or as facts.

Each time is taken in turns with a plain process, so that whatever else happens on the machine happens to both, and the ratio stands.
"""

import os
import re
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kernel_lab.benchmarks import accounts, hostcalls
from kernel_lab.benchmarks.accounts import MEGABYTE, Memory
from kernel_lab.benchmarks.contestant import Absent
from kernel_lab.benchmarks.runners import Boxes
from kernel_lab.kernel.errors import UsageError

WORK = "/bin/work"
COMPUTED, CALLED, STORED, SENT = 20_000_000, 200_000, 32, 64  # rounds, calls, MB, MB
GROWING = ("ctxt", "processes", "intr", "pgfault", "uptime")  # proc_stat(5), proc_vmstat(5), proc_uptime(5)
HOSTS = "the host's"
SECONDS = re.compile(r"seconds (\d+\.\d+)")
FOUND = re.compile(r"^(\w+) (\d+)$", re.MULTILINE)


@dataclass
class Cell:
    """One runner in one column: times and a plain process's in milliseconds, facts by name and unit; what they come to, and what else is said."""

    times: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    short: str = ""
    note: str = ""


class Setting(NamedTuple):
    """What a column is measured with. `address`: of this machine, as boxes reach it; `crowd`: how many idle ones to look at."""

    boxes: Boxes
    plain: Boxes
    rounds: int
    crowd: int = 10
    address: str = ""


Column = Callable[[Setting], Cell]


def _in_turns(setting: Setting, once: Callable[[Boxes], float]) -> Cell:
    """Milliseconds of `once`, whose answer is in seconds."""
    cell = Cell()
    for _ in range(setting.rounds):
        cell.floor.append(once(setting.plain) * 1000)
        cell.times.append(once(setting.boxes) * 1000)
    return _told(cell, lambda milliseconds: f"{_short(milliseconds)} ms")


def _told(cell: Cell, text: Callable[[float], str]) -> Cell:
    """With its median in words, and the ratio to the plain process's."""
    median = statistics.median(cell.times)
    cell.short = f"{text(median)} ({_short(median / statistics.median(cell.floor))} ×)"
    return cell


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _until_first_line(*words: str) -> Callable[[Boxes], float]:
    def once(boxes: Boxes) -> float:
        begin = time.perf_counter()
        with boxes.output(*words) as lines:
            said = next(lines, "nothing")
            seconds = time.perf_counter() - begin
            if said.strip() != "first":
                raise Absent(f"it failed to start: {said.strip()}")
            for _ in lines:
                pass
        return seconds

    return once


def first_instruction(setting: Setting) -> Cell:
    """From the wish until a static program's first words are read."""
    return _in_turns(setting, _until_first_line(WORK, "first"))


def shell(setting: Setting) -> Cell:
    """The same of a shell."""
    return _in_turns(setting, _until_first_line("/bin/sh", "-c", "echo first"))


def stop(setting: Setting) -> Cell:
    """From the wish that an idle one ends until nothing of it is left."""

    def once(boxes: Boxes) -> float:
        end = boxes.idle(0)
        begin = time.perf_counter()
        end()
        return time.perf_counter() - begin

    return _in_turns(setting, once)


def memory(setting: Setting) -> Cell:
    """What the first idle one takes, and each of the next ones: of the kernel's own memory and of processes, this one's growth among them."""
    others = accounts.processes()

    def used() -> int:
        return Memory.now().kernel + accounts.proportional([*accounts.belonging(accounts.processes() - others), os.getpid()])

    with ExitStack() as made:
        before = used()
        made.callback(setting.boxes.idle(1))
        one = used()
        for number in range(2, setting.crowd + 1):
            made.callback(setting.boxes.idle(number))
        everyone = used()
    facts = {"first_mb": round((one - before) / MEGABYTE, 2)}
    if setting.crowd > 1:
        facts["next_mb"] = round((everyone - one) / MEGABYTE / (setting.crowd - 1), 2)
    each = max(facts.get("next_mb", facts["first_mb"]), 0.01)
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    facts["fit"] = min(int(Memory.now().available / MEGABYTE / each), most)
    return Cell(facts=facts, short=f"{facts['first_mb']} MB, next {facts.get('next_mb', '–')} MB", note=f"{facts['fit']:,} would fit here")


def _worked(*words: str) -> Callable[[Boxes], float]:
    """Seconds of a kind of work, by the box's own clock."""

    def once(boxes: Boxes) -> float:
        with boxes.output(WORK, *words) as lines:
            said = "".join(lines)
        if found := SECONDS.search(said):
            return float(found[1])
        raise Absent(f"work {words[0]}: {said.strip() or 'it said nothing'}")

    return once


def computing(setting: Setting) -> Cell:
    """Arithmetic, and a walk through four megabytes; no call of the kernel's."""
    return _in_turns(setting, _worked("compute", str(COMPUTED)))


def calling(setting: Setting) -> Cell:
    """Calls of the kernel's that do nothing."""
    return _told(_in_turns(setting, _worked("call", str(CALLED))), lambda milliseconds: f"{milliseconds * 1e6 / CALLED:.0f} ns each")


def disk(setting: Setting) -> Cell:
    """A file is written past the page cache."""
    return _rate(_in_turns(setting, _worked("store", "stored", str(STORED))), STORED)


def network(setting: Setting) -> Cell:
    """A stream to a process of the host's."""
    with _sink(setting.address) as port:
        return _rate(_in_turns(setting, _worked("send", setting.address, str(port), str(SENT))), SENT)


def _rate(cell: Cell, megabytes: int) -> Cell:
    cell.facts["mb_a_second"] = round(megabytes / statistics.median(cell.times) * 1000, 1)
    return _told(cell, lambda milliseconds: f"{megabytes / milliseconds * 1000:.0f} MB/s")


@contextmanager
def _sink(address: str) -> Iterator[int]:
    """The port at which everything is read, and then closed."""
    with socket.create_server((address, 0)) as server:

        def read() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                with line:
                    while line.recv(MEGABYTE):
                        pass

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def isolation(setting: Setting) -> Cell:
    """How many of the kernel's calls are answered inside, and whether that kernel is the host's; what is told of it by its counters.

    A counter that only grows, and that inside has a value between two of the host's, is one and the same.
    """
    cell = Cell()
    with setting.boxes.output(WORK, "probe") as lines:
        said = "".join(lines)
    found = dict(FOUND.findall(said))
    if "answered" not in found:
        raise Absent(f"work probe: {said.strip() or 'it said nothing'}")
    before = _counters()
    with setting.boxes.output("/bin/cat", "/proc/stat", "/proc/vmstat", "/proc/uptime") as lines:
        inside = _parsed("".join(lines))
    after = _counters()
    shared = sum(key in inside and before[key] <= inside[key] <= after[key] for key in GROWING)
    cell.facts = {"calls": int(found["answered"]), "forbidden": int(found["forbidden"]), "shared": shared, "of": len(GROWING)}
    ours = shared == len(GROWING)
    cell.short = f"{found['answered']} calls of {HOSTS if ours else 'its own'} kernel"
    cell.note = f"{found['forbidden']} calls forbidden; {shared} of {len(GROWING)} counters are the host's"
    return cell if ours else _own_kernel(setting, cell)


def _own_kernel(setting: Setting, cell: Cell) -> Cell:
    """What is between a guest and the host: the calls that the process around it makes. And a panic, which must not harm anybody else."""
    try:
        cell.facts["host_calls"] = _host_calls(setting.boxes)
        cell.note += f"; the process around it makes {cell.facts['host_calls']} different ones of the host's"
    except UsageError as error:
        cell.note += f"; {error}"
    with setting.boxes.output("/bin/sh", "-c", "echo c > /proc/sysrq-trigger") as lines:
        said = "".join(lines)
    cell.facts["panics_alone"] = int("Kernel panic" in said)
    cell.note += "; its panic has ended it alone" if cell.facts["panics_alone"] else "; it could not be made to panic"
    return cell


def _host_calls(boxes: Boxes) -> int:
    others = accounts.processes()
    with hostcalls.counting() as made, boxes.output(WORK, "call", "1000") as lines:
        around = hostcalls.threads(accounts.belonging(accounts.processes() - others))
        for _ in lines:
            around |= hostcalls.threads(accounts.belonging(accounts.processes() - others))
        return len(made(around))


def _counters() -> Mapping[str, float]:
    return _parsed("".join(Path("/proc", name).read_text() for name in ("stat", "vmstat", "uptime")))


def _parsed(text: str) -> Mapping[str, float]:
    """The first number of each line by the line's name; the last line, of two numbers, is the uptime."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    named = {words[0]: float(words[1]) for words in lines if len(words) > 1 and re.fullmatch(r"[\d.]+", words[1])}
    uptime = next((float(words[0]) for words in reversed(lines) if re.fullmatch(r"[\d.]+", words[0])), -1.0)
    return named | {"uptime": uptime}
