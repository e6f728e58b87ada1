"""Around every test that touches the kernel: a run directory of the session's own, the leak audit, and the skips with their reasons.

- Every test is audited: what it leaves in the kernel (`kernel_lab.kernel.snapshot`) fails it.
- `@pytest.mark.needs("root", "nft", ...)` skips where the machine lacks one of these; the words are in tests/needs.py.
- A test that takes `executor` runs on every executor of this machine, on the first alone with KERNEL_LAB_QUICK=1.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from needs import reason

from kernel_lab import PID, UTS, Container, UsageError, User, rootfs
from kernel_lab.kernel.executors import available
from kernel_lab.kernel.snapshot import at_work, snapshot

PATIENCE = 20.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): skip where the machine lacks one of these; see tests/needs.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    why = reason(name for mark in item.iter_markers("needs") for name in mark.args)
    if why:
        pytest.skip(why)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "executor" in metafunc.fixturenames:
        names = available()
        metafunc.parametrize("executor", names[:1] if os.environ.get("KERNEL_LAB_QUICK") == "1" else names, indirect=True)


@pytest.fixture
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the executor that this run of the test is about."""
    name: str = request.param
    monkeypatch.setenv("KERNEL_LAB_EXECUTOR", name)
    return name


def _start_one() -> None:
    """A container, since a creator opens a few files with its first one and keeps them: of itself, of /dev/null, the reaper, to its janitor."""
    # Where none can be started, the tests that are about it say so.
    with suppress(Exception):
        for part in (UTS("first"), PID(init=True)):
            Container(*([] if os.geteuid() == 0 else [User()]), part).run("true")


def _kits_root() -> set[str]:
    """What is at the top of the root that all labs use, whose outputs show it."""
    try:
        return set(os.listdir(rootfs.busybox()))
    except UsageError:
        return set()


@pytest.fixture(scope="session", autouse=True)
def run_directory() -> Iterator[Path]:
    """KERNEL_LAB_RUN for the session: its records are nobody else's, and what it starts is known by it."""
    directory = Path(tempfile.mkdtemp(prefix="klab-tests-", dir="/run" if os.geteuid() == 0 else None))
    with pytest.MonkeyPatch.context() as patch, at_work():
        patch.setenv("KERNEL_LAB_RUN", str(directory))
        _start_one()
        first, root = snapshot(), _kits_root()
        yield directory
        assert _kits_root() - root == set(), "a test has left something in the root of all labs"
        # What a library keeps open until the process ends is no leak of the session; everything else is.
        leaks = first.leaks(PATIENCE, but=("descriptor",))
        shutil.rmtree(directory)
    assert not leaks, f"left behind by the whole session:\n{leaks}"


@pytest.fixture(autouse=True)
def audit(run_directory: Path) -> Iterator[None]:
    """Fail the test that leaves something in the kernel."""
    before = snapshot(run_directory)
    yield
    # Collecting garbage costs more than the whole audit, and is of use only where an object still holds something.
    leaks = before.leaks()
    if leaks:
        gc.collect()
        leaks = before.leaks(PATIENCE)
    assert not leaks, f"left behind:\n{leaks}"
