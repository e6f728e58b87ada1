"""Amounts as people read them."""

import time


def ago(moment: float) -> str:
    """How long a moment lies back, in seconds since 1970."""
    seconds = max(0, int(time.time() - moment))
    for name, size_ in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size_:
            return f"{seconds // size_} {name} ago"
    return f"{seconds} seconds ago"


def size(count: float) -> str:
    """Bytes in three digits, in powers of a thousand, as docker has images' sizes."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g}{unit}"
