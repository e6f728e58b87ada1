"""The C programs of the benchmarks, compiled on first use and kept."""

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kernel_lab import state
from kernel_lab.benchmarks.contestant import Absent

WORK = Path(__file__).with_name("work.c")
DIGITS = 12  # of a digest, at the end of a program's name


def work() -> Path:
    """The program whose work is measured in boxes: it needs nothing around it."""
    return compiled("work", [WORK], options=["-static"])


def compiled(name: str, sources: Sequence[Path], headers: Sequence[Path] = (), options: Sequence[str] = ()) -> Path:
    """The program of these sources. Raises Absent where there is no compiler, or what it needs is not there."""
    text = b"".join(source.read_bytes() for source in (*sources, *headers))
    path = state.data_dir() / f"{name}-{hashlib.sha256(text).hexdigest()[:DIGITS]}"
    if not path.exists():
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if not compiler:
            raise Absent("not installed: a C compiler (cc)")
        half = path.with_name(f"{path.name}.{state.Creator.this().stamp}")
        try:
            subprocess.run([compiler, "-O2", *options, "-o", half, *sources], check=True, capture_output=True, text=True)
            half.replace(path)
            _forget_others(path, name)
        except subprocess.CalledProcessError as error:
            raise Absent(f"{compiler} cannot compile it: {error.stderr.strip().splitlines()[0]}") from None
        finally:
            half.unlink(missing_ok=True)
    return path


def _forget_others(path: Path, name: str) -> None:
    """Removes the programs of other sources. Who runs one of them keeps it until its end (unlink(2))."""
    for other in set(path.parent.glob(f"{name}-{'[0-9a-f]' * DIGITS}")) - {path}:
        other.unlink(missing_ok=True)
