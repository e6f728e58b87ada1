"""Small servers and clients for the tests of networks. A server tells each caller under which address it sees them."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from waiting import soon

PORT = 7000
PYTHON = (sys.executable, "-I", "-S", "-c")

_SERVER = """
import socket
listening = socket.create_server(("", {port}))
print("ready", flush=True)
while True:
    caller, address = listening.accept()
    with caller:
        caller.sendall(address[0].encode())
"""

_CLIENT = """
import socket, time
end = time.monotonic() + {patience}
while True:
    try:
        with socket.create_connection(("{address}", {port}), timeout=max(0.1, end - time.monotonic())) as line:
            print(line.recv(100).decode())
            break
    except OSError as error:
        if time.monotonic() >= end or error.errno == 101:
            print(type(error).__name__, error.errno)
            break
        time.sleep(0.01)
"""


def server(port: int = PORT) -> tuple[str, ...]:
    """The command of a server that says `ready` and runs until it is killed."""
    return (*PYTHON, _SERVER.format(port=port))


def client(address: str, port: int = PORT, patience: float = 20.0) -> tuple[str, ...]:
    """The command that prints what a server says, or the last error once `patience` is over, or at once that there is no way."""
    return (*PYTHON, _CLIENT.format(address=address, port=port, patience=patience))


def call(address: str, port: int = PORT, patience: float = 20.0) -> str:
    """What a server tells this process; it may take a moment until it listens, or until its link is up."""
    said: list[str] = []

    def connected() -> bool:
        try:
            with socket.create_connection((address, port), timeout=patience) as line:
                said.append(line.recv(100).decode())
        except OSError:
            return False
        return True

    assert soon(connected, patience), f"nobody answers at {address}:{port}"
    return said[0]


@contextmanager
def serving(address: str) -> Iterator[int]:
    """A server in this process; its port."""
    with socket.create_server((address, 0)) as listening:
        thread = threading.Thread(target=_serve, args=(listening,))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            # A shutdown wakes the thread that accepts; closing alone would leave it asleep.
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listening: socket.socket) -> None:
    while True:
        try:
            caller, address = listening.accept()
        except OSError:
            return
        with caller:
            caller.sendall(address[0].encode())
