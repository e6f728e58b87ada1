"""Other tools, beside the kit."""

import shlex
import subprocess

from kernel_lab.course.needs import missing


def peer(command: str, timeout: float = 60.0) -> str:
    """What another tool prints for the same thing; one line that says so where it is not installed, or when it fails."""
    argv = shlex.split(command)
    absent = missing(argv[0])
    if absent:
        return f"{argv[0]} is not installed here ({absent[argv[0]]})"
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    return done.stdout.rstrip("\n") if done.returncode == 0 else f"{argv[0]}: exit {done.returncode}: {' '.join(done.stderr.split())}"
