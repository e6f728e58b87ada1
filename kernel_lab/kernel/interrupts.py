"""Steps that an interrupt must not cut in two: it waits until they are done."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Deferred:
    """A context in which Ctrl-C, or a notebook's stop button, takes effect only at the end.

    Between a clone and the moment when its pid is written down, nobody would know what to take back. Blocking the signal in this thread
    would not do: another thread takes it, and Python still runs the handler in the main thread at its next instruction.
    """

    def __enter__(self) -> None:
        self._handler: Any = None
        self._pending: tuple[int, FrameType | None] | None = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                signal.signal(signal.SIGINT, self._remember)
                self._handler = handler

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._pending = number, frame

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._handler:
            signal.signal(signal.SIGINT, self._handler)
        if self._pending:
            self._handler(*self._pending)
