"""pyfuse3 without an event loop: one thread that takes the kernel's requests one after the other.

pyfuse3 asks a library of the kind of trio or asyncio for four things: to wait until a descriptor is readable, a lock, tasks, and who runs now. A file
system whose requests never wait needs only the first. Without the others a request takes a third less time.
"""

import os
import select
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3

# Seconds. To wake a processor that sleeps takes longer than to answer, and requests come in rows: so the next one is waited for awake
# (as in Documentation/virt/guest-halt-polling.rst).
AWAKE = 50e-6
TURNS = 64  # requests, after which something else may be done


class Closed(Exception):
    """The file system is no longer mounted."""


class Loop:
    """Runs pyfuse3; `handlers`: what else to do when a descriptor is readable."""

    ClosedResourceError = Closed

    def __init__(self, handlers: dict[int, Callable[[], None]]) -> None:
        self.handlers = handlers
        self.closed = False
        self.turn = 0
        self.poll = select.poll()
        for descriptor in handlers:
            self.poll.register(descriptor, select.POLLIN)
        self.lowlevel = self

    def run(self) -> None:
        """Until the file system is unmounted, or a handler has called `pyfuse3.terminate`."""
        setattr(pyfuse3, "trio", self)  # noqa: B010
        try:
            pyfuse3.main(1, 1).send(None)
        except StopIteration:
            return
        raise RuntimeError("pyfuse3 waits for something that this loop does not know")

    async def wait_readable(self, descriptor: int) -> None:
        self.poll.register(descriptor, select.POLLIN)
        while True:
            ready = [number for number, _ in self._ready()]
            self.turn += 1
            # Requests first, as far as there is an end to them: the answer to others depends on what has been asked before.
            if descriptor in ready and self.turn % TURNS:
                return
            for number in ready:
                if number in self.handlers:
                    self.handlers[number]()
            if self.closed:
                raise Closed
            if descriptor in ready:
                return

    def _ready(self) -> list[tuple[int, int]]:
        end = time.monotonic() + AWAKE
        while time.monotonic() < end:
            if ready := self.poll.poll(0):
                return ready
            os.sched_yield()
        return self.poll.poll()

    def notify_closing(self, descriptor: int) -> None:
        self.closed = True

    def current_trio_token(self) -> None: ...

    def current_task(self) -> "Loop":
        return self

    name = "the only task"

    def Lock(self) -> "_Free":
        return _Free()

    def open_nursery(self) -> "_Nursery":
        return _Nursery()


class _Free:
    """A lock that nobody else wants."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: object) -> None: ...


class _Nursery:
    """Tasks that run one after the other."""

    def __init__(self) -> None:
        self.tasks: list[Awaitable[Any]] = []

    async def __aenter__(self) -> "_Nursery":
        return self

    def start_soon(self, task: Callable[..., Awaitable[Any]], *args: Any, name: str) -> None:
        self.tasks.append(task(*args))

    async def __aexit__(self, *error: object) -> None:
        for task in self.tasks:
            await task
