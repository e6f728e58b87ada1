"""Steps that an interrupt must not cut in two: it waits until they are done."""

import threading

# What `signal` wraps: the wrappers turn numbers into enumerations and back, which takes longer than the call.
from _signal import SIGINT, getsignal, signal  # type: ignore[import-not-found]
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any, ClassVar

_MAIN = threading.main_thread().ident


class Deferred:
    """A context in which Ctrl-C, or a notebook's stop button, takes effect only at the end, or between `allow` and `forbid`.

    Between a clone and the moment when its pid is written down, nobody would know what to take back. Blocking the signal in this thread
    would not do: another thread takes it, and Python still runs the handler in the main thread at its next instruction.
    One inside another only forbids what the outer one allows: changing a handler takes longer than anything else here.
    """

    _handler: Any = None
    _pending: tuple[int, FrameType | None] | None = None
    _allowed = False
    _outer: "Deferred | None" = None
    _current: ClassVar["Deferred | None"] = None

    @classmethod
    def check(cls) -> None:
        """Raises KeyboardInterrupt if there is one to come: for a step that may take long, and can be left."""
        if cls._current and cls._current._pending and get_ident() == _MAIN:
            raise KeyboardInterrupt

    def allow(self) -> None:
        """From here on an interrupt takes effect at once, and so does one that has come meanwhile. In a context inside another: no change."""
        if self._handler is not None:
            self._allowed = True
            if self._pending:
                pending, self._pending = self._pending, None
                self._take(*pending)

    def forbid(self) -> None:
        """From here on an interrupt waits again."""
        self._allowed = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        # The first one is enough: what has to be taken back on its account must not be interrupted by a second.
        self._allowed = False
        self._handler(number, frame)
        self._allowed = True

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._allowed:
            self._take(number, frame)
        else:
            self._pending = number, frame

    def __enter__(self) -> "Deferred":
        if get_ident() != _MAIN:
            return self
        outer = Deferred._current
        if outer is None:
            handler = getsignal(SIGINT)
            if callable(handler):
                self._handler = handler
                signal(SIGINT, self._remember)
                Deferred._current = self
        elif outer._allowed:
            outer._allowed = False
            self._outer = outer
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._outer is not None:
            self._outer.allow()
        elif self._handler is not None:
            Deferred._current = None
            signal(SIGINT, self._handler)
            if self._pending:
                self._handler(*self._pending)
