"""QEMU's monitor for programs: one JSON object a line (QMP, docs/interop/qmp-spec in QEMU)."""

import json
import socket
from types import TracebackType
from typing import Any

from kernel_lab.kernel.errors import UsageError

PATIENCE = 10.0


class Monitor:
    """A conversation with one QEMU. Raises UsageError for what QEMU refuses, EOFError when it has ended."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._hear()  # the greeting
        self.ask("qmp_capabilities")

    @classmethod
    def at(cls, path: str) -> "Monitor":
        """That of the QEMU which listens at a socket's path. Raises OSError where none does."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
            return cls(connection)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._connection.close()

    def ask(self, command: str, **arguments: object) -> Any:
        """What QEMU returns for a command (`query-status`, `system_powerdown`, `quit`: QEMU's QMP reference)."""
        try:
            self._connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError(f"{command}: QEMU has ended") from None
        while "event" in (answer := self._hear()):
            pass
        if "error" in answer:
            raise UsageError(f"QEMU refuses {command}: {answer['error']['desc']}")
        return answer["return"]

    def _hear(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            line = b""
        if not line:
            raise EOFError("QEMU has ended")
        heard: dict[str, Any] = json.loads(line)
        return heard
