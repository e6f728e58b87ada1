"""What the two errors say, and that they survive a journey between processes."""

import errno
import pickle

import pytest

from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.program import call

ROW = call("mount", "proc", "/proc", "proc", 0, None)


def error() -> KernelError:
    return KernelError(errno.EPERM, str(ROW), index=7, row=ROW, rule="The rule.", look="Look there.")


def test_one_line_names_row_call_errno_rule_and_place():
    assert str(error()) == 'row 7, mount("proc", "/proc", "proc", 0, NULL): EPERM: The rule. Look there.'


def test_without_a_row_the_call_stands_first():
    assert str(KernelError(errno.ENOENT, "clone3(CLONE_NEWUTS)")) == "clone3(CLONE_NEWUTS): ENOENT: No such file or directory."


def test_an_errno_without_a_name_is_still_shown():
    assert str(KernelError(4000, "read()")).startswith("read(): errno 4000: ")


def test_it_is_an_os_error_with_its_parts():
    with pytest.raises(OSError) as caught:
        raise error()
    found = caught.value
    assert isinstance(found, KernelError)
    assert (found.errno, found.index, found.row, found.call) == (errno.EPERM, 7, ROW, str(ROW))
    assert (found.rule, found.look) == ("The rule.", "Look there.")


def test_pickling_keeps_everything():
    sent = error()
    sent.program = "a table"
    got = pickle.loads(pickle.dumps(sent))
    assert (str(got), got.index, got.row, got.program) == (str(sent), 7, ROW, "a table")


class Narrower(KernelError):
    """With something of its own to carry."""

    code = 0


def test_pickling_keeps_the_class_and_what_it_has_added():
    sent = Narrower(errno.ENOENT, "execve()", rule="The rule.")
    sent.code = 127
    got = pickle.loads(pickle.dumps(sent))
    assert (type(got), got.code, str(got)) == (Narrower, 127, str(sent))


def test_usage_errors_are_value_errors():
    with pytest.raises(ValueError, match="mend this"):
        raise UsageError("mend this")
