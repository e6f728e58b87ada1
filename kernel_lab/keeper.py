"""The thread that makes children on behalf of threads that may end before them.

A child is told of its parent's death (PR_SET_PDEATHSIG) when the *thread* that made it ends (prctl(2)), not the process. The main thread lasts
as long as the process; a worker does not. So what is started from any other thread is made by one that lasts. It is a daemon thread: an executor of
`concurrent.futures` would end with the main thread's last line, before other threads have done their work.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

A = TypeVar("A")
T = TypeVar("T")
Job = tuple[Callable[[Any], Any], Any, "Future[Any]"]

_MAIN = threading.main_thread().ident
_lock = threading.Lock()
_queues: dict[int, "SimpleQueue[Job]"] = {}


def lastingly(make: Callable[[A], T], of: A) -> T:
    """`make(of)`, in a thread that lasts as long as this process."""
    if threading.get_ident() == _MAIN:
        return make(of)
    done: Future[T] = Future()
    _queue().put((make, of, done))
    return done.result()


def _queue() -> "SimpleQueue[Job]":
    with _lock:
        if os.getpid() not in _queues:  # after a fork, the parent's thread is not here
            _queues.clear()
            _queues[os.getpid()] = SimpleQueue()
            threading.Thread(target=_work, args=(_queues[os.getpid()],), name="klab-keeper", daemon=True).start()
        return _queues[os.getpid()]


def _work(jobs: "SimpleQueue[Job]") -> None:
    while True:
        make, of, done = jobs.get()
        try:
            done.set_result(make(of))
        except BaseException as error:
            done.set_exception(error)
