"""How every test waits: for something to be true, patiently, never for a time."""

import time
from collections.abc import Callable


def soon(predicate: Callable[[], object], patience: float = 20.0) -> bool:
    """Whether `predicate` comes true within `patience` seconds. A busy machine is slow; it is not wrong."""
    end = time.monotonic() + patience
    while not predicate():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
