"""How every test waits: for something to be true, patiently, never for a time; and for threads that do something at once."""

import threading
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


def at_once(job: Callable[[], object], threads: int) -> list[BaseException]:
    """What `job` has raised in threads that began it together."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(threads)

    def work() -> None:
        barrier.wait()
        try:
            job()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return errors
