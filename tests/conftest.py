"""What all tests share: the marker that says what a test needs of the machine, and property tests without chance or clock."""

import pytest
from hypothesis import settings
from needs import reason

# The same examples every time, however busy the machine: a red test is one that anybody can repeat.
settings.register_profile("kit", derandomize=True, deadline=None, database=None)
settings.load_profile("kit")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): skip where the machine lacks one of these; see tests/needs.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    why = reason(name for mark in item.iter_markers("needs") for name in mark.args)
    if why:
        pytest.skip(why)
