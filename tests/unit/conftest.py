"""A registry of ours, and a client of it, for the tests that ask for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import httpx

    from kernel_lab.registry.server import Registry

Pair = tuple["Registry", "httpx.Client"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Pair]:
    # Here, so that tests of something else need not wait for its libraries.
    from registries import serving

    with serving(tmp_path / "registry") as pair:
        yield pair


@pytest.fixture
def registry(served: Pair) -> "Registry":
    return served[0]


@pytest.fixture
def client(served: Pair) -> "httpx.Client":
    return served[1]
