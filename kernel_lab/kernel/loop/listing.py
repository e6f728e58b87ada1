"""Machine code that can be read: lines of (bytes in hex, assembly, why). A line whose assembly ends in a colon is a label and has no bytes."""

from collections.abc import Sequence

Line = tuple[str, str, str]
Listing = Sequence[Line]


def assemble(listing: Listing) -> bytes:
    """The bytes of a listing, one line after the other."""
    return b"".join(bytes.fromhex(octets) for octets, _, _ in listing)


def labels(listing: Listing) -> dict[str, int]:
    """Where each label stands, in bytes from the start."""
    found, at = {}, 0
    for octets, text, _ in listing:
        if text.endswith(":"):
            found[text.removesuffix(":")] = at
        at += len(bytes.fromhex(octets))
    return found


def show(listing: Listing) -> str:
    """The listing as a table for the eye: offset, bytes, assembly, why."""
    lines, at = [], 0
    for octets, text, why in listing:
        comment = f"; {why}" if why else ""
        line = f"{text:56}" if text.endswith(":") else f"{at:6x}  {octets:22}  {text:24}"
        lines.append(f"{line}  {comment}".rstrip())
        at += len(bytes.fromhex(octets))
    return "\n".join(lines)
