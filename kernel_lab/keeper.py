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

T = TypeVar("T")
Job = tuple[Callable[[], Any], "Future[Any]"]

_lock = threading.Lock()
_queues: dict[int, "SimpleQueue[Job]"] = {}


def lastingly(make: Callable[[], T]) -> T:
    """`make()`, in a thread that lasts as long as this process."""
    if threading.current_thread() is threading.main_thread():
        return make()
    done: Future[T] = Future()
    _queue().put((make, done))
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
        make, done = jobs.get()
        try:
            done.set_result(make())
        except BaseException as error:
            done.set_exception(error)
