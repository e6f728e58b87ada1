"""Steps that an interrupt must not cut in two: it waits until they are done."""

import threading

# What `signal` wraps: the wrappers turn numbers into enumerations and back, which takes longer than the call.
from _signal import SIGINT, getsignal, signal  # type: ignore[import-not-found]
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any, ClassVar

_MAIN = threading.main_thread().ident


class Deferred:
    """A context in which Ctrl-C, or a notebook's stop button, takes effect only at the end.

    Between a clone and the moment when its pid is written down, nobody would know what to take back. Blocking the signal in this thread
    would not do: another thread takes it, and Python still runs the handler in the main thread at its next instruction.
    """

    _handler: Any = None
    _pending: tuple[int, FrameType | None] | None = None
    _current: ClassVar["Deferred | None"] = None

    @classmethod
    def check(cls) -> None:
        """Raises KeyboardInterrupt if there is one to come: for a step that may take long, and can be left."""
        if cls._current and cls._current._pending and get_ident() == _MAIN:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        # One inside another has nothing to do: the outer one waits for the end already.
        if get_ident() == _MAIN and Deferred._current is None:
            handler = getsignal(SIGINT)
            if callable(handler):
                self._handler = handler
                signal(SIGINT, self._remember)
                Deferred._current = self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._pending = number, frame

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._handler is None:
            return
        Deferred._current = None
        signal(SIGINT, self._handler)
        if self._pending:
            self._handler(*self._pending)
