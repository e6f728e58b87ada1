"""The bytes of a guest, as the labs write them, and what no machine can have as its code."""

from kernel_lab.kernel.errors import UsageError

START = 0x7C00  # where a PC's firmware puts a boot sector, and we put the code: the same bytes run in both


def code(listing: str) -> bytes:
    """The bytes of a listing: each line begins with them in hexadecimal, and two spaces end them; an explanation may follow.

    Raises UsageError for a line that does not begin so.
    """
    found = b""
    for line in listing.strip().splitlines():
        digits = line.strip().split("  ")[0]
        try:
            found += bytes.fromhex(digits)
        except ValueError:
            raise UsageError(f"{line!r}: bytes in hexadecimal are wanted, then two spaces, then what you like") from None
    return found


def check(code: bytes, memory: int, page: int, largest: int) -> None:
    """Raises UsageError for code or memory that no machine can have."""
    if not isinstance(code, bytes | bytearray) or not code:
        raise UsageError(f"{code!r}: the code of a machine is bytes, at least one")
    if memory % page or not START < memory <= largest:
        raise UsageError(f"memory of {memory} bytes: whole pages of {page} bytes are wanted, more than {START} bytes and at most {largest}")
    if START + len(code) > memory:
        raise UsageError(f"code of {len(code)} bytes, beginning at {START:#x}, does not fit into a memory of {memory} bytes")
