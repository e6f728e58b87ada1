"""A limit on the time that a learner's code may take."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 10.0  # an answer that swallows the first interruption meets the next one


class OutOfTime(BaseException):
    """Not an Exception, so that `except Exception` in an answer cannot swallow it."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds.

    Python runs signal handlers in the main thread alone, which is where a notebook runs its cells; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    over = False

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if not over:
            raise OutOfTime(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
            yield
        finally:
            over = True
    finally:
        # Out of reach of the interruption, which may come at any step above: the next one is far away, or does nothing.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
