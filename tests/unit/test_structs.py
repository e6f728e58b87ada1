"""The structs, read back field by field, and by the kernel itself where no right is needed."""

import ctypes
import os
import resource
import signal
import socket
import struct

import pytest

from kernel_lab.kernel import structs
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import CLONE, IFF, POLL, SA, SIG, SIG_HANDLER, SIG_HOW
from kernel_lab.kernel.syscalls import number

libc = ctypes.CDLL(None, use_errno=True)


def test_sizes_are_the_kernel_s():
    sizes = {
        88: structs.clone_args(CLONE.NEWUTS),
        40: structs.ifreq("lo"),
        16: structs.sockaddr_in("10.0.0.1", 80),
        120: structs.rtentry("0.0.0.0/0", "10.0.0.1"),
        32: structs.sigaction(SIG_HANDLER.DFL),
        8: structs.sigset([]),
    }
    assert {size: len(made.data) for size, made in sizes.items()} == {size: size for size in sizes}


def test_clone_args_fields():
    made = structs.clone_args(CLONE.NEWUTS | CLONE.PIDFD, pidfd=0x1000, cgroup=7)
    assert struct.unpack("<11Q", made.data) == (CLONE.NEWUTS | CLONE.PIDFD, 0x1000, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 7)
    assert made.shown == "{flags=CLONE_PIDFD|CLONE_NEWUTS, exit_signal=SIGCHLD}"


def test_the_kernel_answers_for_loopback():
    request = ctypes.create_string_buffer(structs.ifreq("lo").data)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert libc.ioctl(sock.fileno(), 0x8913, request) == 0
    answered = IFF(struct.unpack_from("<h", request.raw, 16)[0])
    assert IFF.LOOPBACK in answered


def test_ifreq_values():
    assert structs.ifreq("eth0", flags=IFF.UP).data[:18] == b"eth0" + bytes(12) + b"\x01\x00"
    assert structs.ifreq("eth0", address="10.0.0.2").data[16:24] == b"\x02\x00\x00\x00\x0a\x00\x00\x02"
    assert structs.ifreq("eth0", number=1500).data[16:20] == struct.pack("<i", 1500)
    assert structs.ifreq("eth0", flags=IFF.UP | IFF.RUNNING).shown == '{"eth0", IFF_UP|IFF_RUNNING}'


@pytest.mark.parametrize("name", ["", "sixteen-bytes-it", "a\0b", "ü" * 8])
def test_an_interface_name_the_kernel_could_not_hold(name):
    with pytest.raises(UsageError, match="1 to 15 bytes"):
        structs.ifreq(name)


def test_longest_interface_name_fits():
    assert structs.ifreq("fifteen-bytes-i").data[:16] == b"fifteen-bytes-i\0"


def test_sockaddr_connects():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        address = structs.sockaddr_in("127.0.0.1", server.getsockname()[1])
        assert libc.connect(client.fileno(), address.data, len(address.data)) == 0


def test_rtentry_fields():
    made = structs.rtentry("10.1.0.0/16", "10.0.0.1")
    assert made.data[8:16] == b"\x02\0\0\0\x0a\x01\0\0"
    assert made.data[24:32] == b"\x02\0\0\0\x0a\0\0\x01"
    assert made.data[40:48] == b"\x02\0\0\0\xff\xff\0\0"
    assert struct.unpack_from("<H", made.data, 56)[0] == 3
    assert made.shown == "{10.1.0.0/16 via 10.0.0.1, RTF_UP|RTF_GATEWAY}"
    assert structs.rtentry("10.1.0.0/16").shown == "{10.1.0.0/16, RTF_UP}"


def test_the_kernel_takes_the_signal_mask():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    wanted = structs.sigset([SIG.USR1, SIG.TERM])
    assert libc.syscall(number("rt_sigprocmask"), SIG_HOW.SETMASK, wanted.data, None, len(wanted.data)) == 0
    try:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR1, signal.SIGTERM}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert wanted.shown == "{SIGUSR1, SIGTERM}"


def test_the_kernel_takes_the_action():
    before = signal.getsignal(signal.SIGUSR2)
    ignored = structs.sigaction(SIG_HANDLER.IGN, SA.RESTART, [SIG.HUP])
    assert libc.syscall(number("rt_sigaction"), int(SIG.USR2), ignored.data, None, 8) == 0
    try:
        os.kill(os.getpid(), signal.SIGUSR2)  # its default would end this process
    finally:
        signal.signal(signal.SIGUSR2, before or signal.SIG_DFL)
    assert ignored.shown == "{SIG_IGN, SA_RESTART, {SIGHUP}}"


def test_the_kernel_takes_the_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    wanted = structs.rlimit64(0, structs.RLIM_INFINITY if hard == resource.RLIM_INFINITY else hard)
    assert libc.syscall(number("prlimit64"), 0, int(resource.RLIMIT_CORE), wanted.data, None) == 0
    try:
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_the_kernel_polls():
    readable, writable = os.pipe()
    try:
        asked = ctypes.create_string_buffer(structs.pollfd(writable, POLL.OUT).data)
        assert libc.syscall(number("ppoll"), asked, 1, structs.timespec(0).data, None, 8) == 1
        assert POLL(struct.unpack_from("<h", asked.raw, 6)[0]) == POLL.OUT
    finally:
        os.close(readable)
        os.close(writable)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: structs.sockaddr_in("10.0.0.256"), "10.0.0.256"),
        (lambda: structs.sockaddr_in("10.0.0.1", 65536), "65536"),
        (lambda: structs.rtentry("10.0.0.1/24"), "host bits"),
        (lambda: structs.timespec(0, 10**9), "1000000000"),
        (lambda: structs.rlimit64(2, 1), "above the hard limit"),
        (lambda: structs.sigset([0]), "signal 0"),
        (lambda: structs.sigset([65]), "signal 65"),
        (lambda: structs.ifreq("lo", flags=IFF.UP, number=1), "one value"),
    ],
)
def test_what_the_kernel_could_not_take(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_texts():
    assert str(structs.rlimit64(structs.RLIM_INFINITY)) == "{soft=unlimited, hard=unlimited}"
    assert str(structs.timespec(3, 5)) == "{3 s, 5 ns}"
    assert str(structs.sockaddr_in("10.0.0.1", 80)) == "10.0.0.1:80"
    assert str(structs.pollfd(3, POLL.IN | POLL.HUP)) == "{fd=3, POLLIN|POLLHUP}"
