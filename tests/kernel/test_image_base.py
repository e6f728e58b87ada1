"""Images from this machine's packages: what they hold, that they are the same each time, and that a container on them works."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from here import IS_ROOT, users

from kernel_lab import PID, Container, Mount, UsageError, User, bootstrap
from kernel_lab.images import base, platforms
from kernel_lab.images.descriptor import Platform
from kernel_lab.images.root import ImageRoot
from kernel_lab.images.store import Store

EPOCH = "1700000000"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


@pytest.mark.needs("busybox", "userns")
def test_busybox_is_an_image_that_runs(store: Store) -> None:
    image = base.make("busybox", store)
    assert image.names == ("docker.io/library/busybox:latest",) and image.settings["Cmd"] == ["sh"]
    assert Platform(image.platform.architecture, image.platform.os, image.platform.variant) == platforms.here()
    box = Container(*users(), PID(), Mount(ImageRoot(image)))
    shown = box.run("sh", "-c", "id -un; hostname > /tmp/x; stat -c '%a %u' / /tmp /bin/busybox; env true; ls /sbin/sh").stdout
    assert shown.split() == ["root", "755", "0", "1777", "0", "755", "0", "/sbin/sh"]


@pytest.mark.needs("busybox")
def test_busybox_is_the_same_each_time(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, umask = base.make("busybox", store), os.umask(0o077)
    try:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
        second, third = base.make("busybox", Store(tmp_path / "second")), base.make("busybox", Store(tmp_path / "third"), "busybox")
    finally:
        os.umask(umask)
    assert first.config.diff_ids == second.config.diff_ids and second.descriptor == third.descriptor


@pytest.mark.needs("busybox")
def test_it_has_the_name_that_is_asked_for(store: Store) -> None:
    assert base.make("busybox", store, "registry.example/me/box:1").names == ("registry.example/me/box:1",)


@pytest.mark.parametrize(
    ("what", "name", "suite", "words"),
    [
        ("fedora", None, None, "'fedora': from packages of this machine there is busybox and debian"),
        ("busybox", None, "trixie", "busybox in trixie: it is this machine's program"),
        ("busybox", "Not A Name", None, "Not A Name"),
        ("debian", "Not A Name", None, "Not A Name"),
        ("debian", None, "../x", "a suite is a name"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(
    what: str, name: str | None, suite: str | None, words: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "archive", lambda recipe: pytest.fail("begun"))
    with pytest.raises(UsageError, match=words):
        base.make(what, store, name, suite)
    assert store.images() == () and not list(store.path.glob("blobs/*/*"))


def test_a_busybox_that_is_not_installed_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="install Debian's package busybox-static"):
        base.make("busybox", store)


@pytest.mark.needs("mmdebstrap")
def test_a_debian_that_fails_says_why_and_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails after it has begun to write the archive."""
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in ("setpriv", "newuidmap", "apt-get", "apt-config", "head", "sh"):
        if found := shutil.which(name):
            (fake / name).symlink_to(found)
    (fake / "mmdebstrap").write_text("#!/bin/sh\nhead -c 3000000 /dev/zero\necho no mirror >&2\nexit 7\n")
    (fake / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(fake))
    with pytest.raises((RuntimeError, UsageError), match="no mirror"):
        base.make("debian", store)
    assert store.images() == () and sorted(os.listdir(store.path)) == ["blobs", "index.json", "lock", "oci-layout"]
    store.prune()
    assert not list(store.path.glob("blobs/*/*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.needs("mmdebstrap", "newuidmap", "userns")
def test_a_debian_is_the_same_each_time_and_apt_works_in_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    image, again = base.make("debian", store), base.make("debian", store, "again")
    assert image.descriptor.digest == again.descriptor.digest
    assert f"docker.io/library/debian:{bootstrap.own_suite()}" in image.names
    box = Container(*(() if IS_ROOT else (User.subordinate(),)), PID(), Mount(ImageRoot(image)))
    assert box.run("dpkg", "--audit", check=True).stdout == ""
    shown = box.run("sh", "-c", "id -un; bash -c 'echo $0'; test ! -e /etc/hostname; perl -e 'print 6*7'", check=True).stdout
    assert shown.split() == ["root", "bash", "42"]
    # An ordinary user's files are all his own.
    assert box.run("stat", "-c", "%U", "/var/cache/apt/archives/partial", check=True).stdout == ("_apt\n" if IS_ROOT else "root\n")
    installed = box.run("sh", "-c", "apt-get update && apt-get install -y --no-install-recommends hello && hello", timeout=300)
    assert installed.code == 0 and installed.stdout.endswith("Hello, world!\n"), installed.stderr


@pytest.mark.needs("busybox", "skopeo")
def test_skopeo_copies_it_whole(store: Store, tmp_path: Path) -> None:
    image = base.make("busybox", store)
    source, target = f"oci:{store.path}:docker.io/library/busybox:latest", f"dir:{tmp_path / 'copy'}"
    subprocess.run(["skopeo", "copy", "--insecure-policy", source, target], check=True, capture_output=True)
    blob = (tmp_path / "copy" / image.layers[0].blob.digest.partition(":")[2]).read_bytes()
    assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == image.layers[0].blob.digest
