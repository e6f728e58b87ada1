"""The thread that makes children on behalf of threads that may end before them.

A child is told of its parent's death (PR_SET_PDEATHSIG) when the *thread* that made it ends (prctl(2)), not the process. The main thread lasts
as long as the process; a worker does not. So what is started from any other thread is made by one that lasts.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_threads: dict[int, ThreadPoolExecutor] = {}


def lastingly(make: Callable[[], T]) -> T:
    """`make()`, in a thread that lasts as long as this process."""
    if threading.current_thread() is threading.main_thread():
        return make()
    with _lock:
        if os.getpid() not in _threads:  # after a fork, the parent's thread is not here
            _threads.clear()
            _threads[os.getpid()] = ThreadPoolExecutor(1, "klab-keeper")
    return _threads[os.getpid()].submit(make).result()
