"""A directory packed as root of the user's own containers sees it, to whom nothing is closed that they have written.

An ordinary user is not: a file may belong to an id of /etc/subuid, or have a mode that shuts out its own user. So it is packed in a user namespace.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import kernel_lab
from kernel_lab import state
from kernel_lab.images.pack import CHUNK, pack
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.unionfs.whiteouts import FOUND

REFUSED = 3


def packed(directory: Path) -> Iterator[bytes]:
    """The archive of a container's upper directory, in chunks, with the owners that it has inside: who has no number there is nobody.

    Raises as `pack`.
    """
    if os.geteuid() == 0:
        yield from pack(directory, FOUND)
        return
    # Not the working directory, where anything may lie.
    command = [*state.as_their_root(), sys.executable, "-P", "-m", __name__, str(directory)]
    paths = [os.path.dirname(path) for path in kernel_lab.__path__] + list(filter(os.path.isabs, sys.path))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, env=env) as packing,
    ):
        assert packing.stdout
        yield from iter(partial(packing.stdout.read, CHUNK), b"")
        if code := packing.wait():
            raise _error(code, said)


def _error(code: int, said: IO[bytes]) -> Exception:
    said.seek(0)
    words = said.read()
    if code == REFUSED:
        error: Exception = pickle.loads(words)
        return error
    return RuntimeError(f"packing in a user namespace has failed:\n{words.decode(errors='replace')[-4000:]}")


if __name__ == "__main__":
    try:
        for chunk in pack(Path(sys.argv[1]), FOUND):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except (UsageError, KernelError) as error:
        sys.stderr.buffer.write(pickle.dumps(error))
        sys.exit(REFUSED)
