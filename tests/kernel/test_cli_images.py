"""Images as a user types them: `klab image …`, `klab run IMAGE`, and docker's words for the rest."""

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab.images.draft import Draft
from kernel_lab.images.image import Image
from kernel_lab.images.store import Store
from kernel_lab.registry.server import Registry

KLAB = [sys.executable, "-m", "kernel_lab.cli"]


class Shell:
    """`klab` with images of its own."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.env = os.environ | {"KERNEL_LAB_DATA": str(data)}

    def __call__(self, *words: str, code: int = 0, **settings: object) -> str:
        done = subprocess.run([*KLAB, *words], capture_output=True, text=True, timeout=120, env=self.env, **settings)  # type: ignore[call-overload]
        assert done.returncode == code, (words, done)
        assert "Traceback" not in done.stderr
        return str(done.stdout) if code == 0 else str(done.stderr)

    def lines(self, *words: str) -> list[str]:
        return self(*words).splitlines()

    def described(self, name: str) -> dict[str, object]:
        return json.loads(self("image", "inspect", name))[0]  # type: ignore[no-any-return]


@pytest.fixture
def klab(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path / "data")
    shell("image", "make", "busybox")
    yield shell
    for name in shell.lines("ps", "-aq"):
        shell("rm", "-f", name)


@pytest.fixture
def web(klab: Shell) -> str:
    """A container in the background that has written something."""
    klab("run", "-d", "--name", "web", "busybox", "sh", "-c", "echo mine > /etc/motd; rm /etc/hosts; mkdir /srv; echo ready; sleep 1d")
    assert soon(lambda: "ready" in klab("logs", "web"))
    return "web"


def names(klab: Shell) -> list[str]:
    return [" ".join(line.split()[:2]) for line in klab.lines("images")[1:]]


def test_an_image_is_listed_and_described_and_has_a_history(klab: Shell) -> None:
    assert names(klab) == ["busybox latest"]
    shown = klab.described("busybox")
    assert shown["RepoTags"] == ["busybox:latest"] and shown["Config"]["Cmd"] == ["sh"]  # type: ignore[index]
    assert klab.lines("images", "-q") == [str(shown["Id"]).removeprefix("sha256:")[:12]]
    assert klab.lines("images", "-q", "--no-trunc", "busybox") == [shown["Id"]]
    assert len(klab.lines("images", "another")) == 1
    assert "klab image make busybox" in klab("history", "busybox")
    assert klab.lines("history", "-q", "busybox") == shown["RootFS"]["Layers"]  # type: ignore[index]
    assert json.loads(klab("history", "--json", "busybox"))[0]["created_by"] == "klab image make busybox"


def test_a_container_of_an_image_writes_into_a_layer_of_its_own(klab: Shell) -> None:
    assert klab("run", "busybox", "sh", "-c", "echo new > /etc/motd; cat /etc/motd") == "new\n"
    assert klab("run", "busybox", "sh", "-c", "cat /etc/motd || echo as it was").strip() == "as it was"


@pytest.mark.slow
@pytest.mark.needs("newuidmap")
def test_run_takes_the_command_the_environment_the_directory_and_the_user_from_the_image(klab: Shell, web: str) -> None:
    changes = ['ENTRYPOINT ["sh", "-c"]', "CMD id -un; pwd; echo $WHO", "ENV WHO=me", "USER nobody", "WORKDIR /not/there/yet", "STOPSIGNAL QUIT"]
    klab("commit", *(word for change in changes for word in ("--change", change)), web, "app:1")
    assert klab("run", "app:1", "id -un; pwd; echo $WHO").split() == ["nobody", "/not/there/yet", "me"]
    assert klab("run", "-u", "root", "app:1", "id -un").strip() == "root"
    assert klab("run", "-e", "WHO=you", "-w", "/tmp", "app:1", "pwd; echo $WHO").split() == ["/tmp", "you"]
    assert klab("run", "--entrypoint", "echo", "app:1").strip() == ""
    assert klab("run", "--entrypoint", "", "app:1", "echo", "bare").strip() == "bare"
    assert "does not say what" in klab("run", "--entrypoint", "", "app:1", code=125)


@pytest.mark.slow
def test_exec_sees_what_the_image_and_run_have_given(klab: Shell, web: str) -> None:
    klab("commit", "--change", "ENV WHO=me", "--change", "WORKDIR /srv", web, "app")
    klab("run", "-d", "--name", "again", "-e", "MORE=1", "app", "sleep", "1d")
    assert klab("exec", "again", "sh", "-c", "echo $WHO $MORE; pwd").split() == ["me", "1", "/srv"]


@pytest.mark.slow
def test_what_a_container_has_changed_is_listed_and_becomes_an_image(klab: Shell, web: str) -> None:
    assert klab.lines("diff", web) == ["C /etc", "D /etc/hosts", "A /etc/motd", "A /srv"]
    made = klab("commit", "-m", "a line", "-a", "me", web, "mine:2").strip()
    assert klab.described("mine:2")["Id"] == made
    assert "a line" in klab("history", "mine:2") and klab.described("mine:2")["Author"] == "me"
    assert klab.lines("image", "diff", "mine:2") == klab.lines("diff", web)
    assert klab.lines("image", "diff", "busybox", "mine:2") == klab.lines("diff", web)
    assert [line[0] for line in klab.lines("image", "diff", "mine:2", "busybox")] == ["C", "A", "D", "D"]
    assert klab("run", "mine:2", "cat", "/etc/motd") == "mine\n"


@pytest.mark.slow
def test_a_used_image_is_not_removed_and_the_last_name_takes_it_away(klab: Shell, web: str) -> None:
    assert f"container {web} runs on it" in klab("rmi", "busybox", code=125)
    klab("tag", "busybox", "registry.example:5000/other:1")
    assert klab.lines("rmi", "busybox") == ["Untagged: busybox:latest"]
    assert names(klab) == ["registry.example:5000/other 1"]
    klab("tag", "registry.example:5000/other:1", "third")
    identity = klab.lines("images", "-q")[0]
    assert "several names" in klab("rmi", identity, code=125)
    assert len([line for line in klab.lines("rmi", "-f", identity) if line.startswith("Untagged")]) == 2
    assert names(klab) == [] and klab("exec", web, "cat", "/etc/motd") == "mine\n"
    klab("rm", "-f", web)
    klab("image", "prune", "--force")
    left = [path.name for path in klab.data.joinpath("snapshots").iterdir() if not path.name.startswith(".")]
    assert left == ["mountpoints"] and not list(klab.data.joinpath("images/blobs").glob("*/*"))


@pytest.mark.slow
def test_prune_takes_what_has_no_name_and_with_all_what_nobody_uses(klab: Shell, web: str) -> None:
    klab("commit", web)
    klab("commit", web, "kept")
    klab("image", "prune", input="n\n")
    assert len(names(klab)) == 3
    klab("image", "prune", input="y\n")
    assert sorted(names(klab)) == ["busybox latest", "kept latest"]
    klab("image", "prune", "-a", "-f")
    assert names(klab) == ["busybox latest"]


@pytest.mark.slow
def test_prune_takes_an_image_of_several_names_and_none_that_is_used(klab: Shell, web: str) -> None:
    klab("commit", web, "kept")
    klab("tag", "kept", "again")
    klab("rmi", "-f", "kept")
    klab("run", "-d", "--name", "user", "again", "sleep", "1d")
    klab("tag", "busybox", "again")  # the image that is run has no name any more
    klab("image", "prune", "-f")
    assert klab("commit", "user", "from-it").startswith("sha256:")
    klab("rm", "-f", "user", web)
    klab("tag", "from-it", "twice")
    klab("image", "prune", "-a", "-f")
    assert names(klab) == []


@pytest.mark.slow
def test_a_variable_that_its_caller_has_not_is_none(klab: Shell, web: str) -> None:
    klab("commit", "--change", "ENV WHO=me", web, "app")
    assert "KLAB_NONE" not in os.environ
    assert klab("run", "-e", "KLAB_NONE", "app", "sh", "-c", "echo ${KLAB_NONE-unset} $WHO").split() == ["unset", "me"]
    assert klab("run", "-e", "WHO", "app", "sh", "-c", "echo ${WHO-unset}").split() == ["unset"]
    klab.env["WHO"] = "you"
    assert klab("run", "-e", "WHO", "app", "sh", "-c", "echo ${WHO-unset}").split() == ["you"]


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "heard"), [("SIGRTMIN+3", "rt"), ("SIGNOTHING", "term")])
def test_a_container_is_asked_to_end_as_its_image_says(klab: Shell, web: str, asked: str, heard: str) -> None:
    klab("commit", "--change", f"STOPSIGNAL {'RTMIN+3' if heard == 'rt' else 'TERM'}", web, "app")
    if heard == "term":
        klab("commit", web, "app")
        edited = Store(klab.data / "images")
        with edited.adding() as adding:
            Draft.on(Image.find(edited, "app")).with_settings({"StopSignal": asked}).put(adding, "app")
    number = 37 if heard == "rt" else 15
    klab("run", "-d", "--name", "asked", "app", "sh", "-c", f"trap 'echo heard {number}; exit 5' {number}; echo ready; while :; do sleep 0.05; done")
    assert soon(lambda: "ready" in klab("logs", "asked"))
    klab("stop", "-t", "60", "asked")
    assert f"heard {number}" in klab("logs", "asked")


@pytest.mark.slow
@pytest.mark.needs("root")
def test_exec_of_another_user_has_that_ones_home(klab: Shell) -> None:
    klab("run", "-d", "--name", "web", "-u", "nobody", "busybox", "sleep", "1d")
    assert klab("exec", "web", "sh", "-c", "echo $HOME").strip() == "/"
    assert klab("exec", "-u", "root", "web", "sh", "-c", "echo $HOME").strip() == "/root"


@pytest.mark.slow
def test_an_archive_replaces_no_device_and_only_its_owner_reads_it(klab: Shell, web: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "no file" in klab("save", "-o", str(tmp_path / "fifo"), "busybox", code=125) and stat.S_ISFIFO(os.stat(tmp_path / "fifo").st_mode)
    (tmp_path / "link.tar").symlink_to("real.tar")
    (tmp_path / "real.tar").touch()
    klab("export", "-o", str(tmp_path / "link.tar"), web)
    assert (tmp_path / "link.tar").is_symlink() and tarfile.is_tarfile(tmp_path / "real.tar")
    assert stat.S_IMODE(os.stat(tmp_path / "real.tar").st_mode) == 0o600


@pytest.mark.slow
def test_a_quiet_build_that_fails_says_why_and_leaves_no_old_id(klab: Shell, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nARG CODE=0\nRUN echo the reason; exit $CODE\n")
    klab("build", "-q", "--iidfile", str(tmp_path / "id"), str(tmp_path))
    assert (tmp_path / "id").read_text().startswith("sha256:")
    klab.env.pop("CODE", None)
    klab("build", "-q", "--build-arg", "CODE", str(tmp_path))  # not a variable of ours: the default stays
    said = klab("build", "-q", "--iidfile", str(tmp_path / "id"), "--build-arg", "CODE=3", str(tmp_path), code=3)
    assert "the reason" in said and "Dockerfile:3: RUN" in said and not (tmp_path / "id").exists()


@pytest.mark.slow
def test_the_words_of_a_command_are_told_apart_in_the_cache(klab: Shell, tmp_path: Path) -> None:
    for command, made in (('["mkdir", "/a b"]', "a b"), ('["mkdir", "/a", "b"]', "a")):
        (tmp_path / "Dockerfile").write_text(f"FROM busybox\nWORKDIR /\nRUN {command}\n")
        klab("build", "-q", "-t", "app", str(tmp_path))
        assert made in klab("run", "app", "ls", "/").splitlines()


@pytest.mark.slow
def test_images_travel_in_an_archive_and_keep_their_ids(klab: Shell, web: str, tmp_path: Path) -> None:
    made = klab("commit", web, "mine").strip()
    klab("image", "save", "-o", str(tmp_path / "saved.tar"), "mine", "busybox")
    other = Shell(tmp_path / "other")
    assert sorted(other.lines("load", "-i", str(tmp_path / "saved.tar"))) == ["Loaded image: busybox:latest", "Loaded image: mine:latest"]
    assert other.described("mine")["Id"] == made
    assert not list(tmp_path.glob(".saved*"))
    assert "busybox" in klab("save", "-o", str(tmp_path / "none.tar"), "no-such", code=125) and not (tmp_path / "none.tar").exists()


@pytest.mark.slow
def test_a_tree_is_exported_and_imported(klab: Shell, web: str, tmp_path: Path) -> None:
    klab("export", "-o", str(tmp_path / "tree.tar"), web)
    with tarfile.open(tmp_path / "tree.tar") as tar:
        found = {name.removeprefix("./") for name in tar.getnames()}
    assert {"etc/motd", "srv", "bin/busybox"} <= found and "etc/hosts" not in found and not any(name.startswith("proc/") for name in found)
    klab("import", "-c", "CMD cat /etc/motd", "-m", "flat", str(tmp_path / "tree.tar"), "flat")
    assert klab("run", "flat") == "mine\n" and len(klab.described("flat")["Layers"]) == 1  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_export_of_a_container_that_ends_meanwhile_fails(klab: Shell, web: str) -> None:
    with subprocess.Popen([*KLAB, "export", web], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=klab.env) as exporting:
        assert exporting.stdout and exporting.stderr
        exporting.stdout.read(1)  # it has begun, and waits: a pipe holds less than the archive
        klab("rm", "-f", web)
        exporting.stdout.read()
        said = exporting.stderr.read().decode()
    assert exporting.returncode == 125 and ("ended meanwhile" in said or "pack" in said), said


@pytest.mark.slow
def test_a_hostile_archive_changes_nothing(klab: Shell, tmp_path: Path) -> None:
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../../evil"))
    (tmp_path / "evil.tar").write_bytes(evil.getvalue())
    for words in (["import", str(tmp_path / "evil.tar"), "evil"], ["load", "-i", str(tmp_path / "evil.tar")]):
        assert klab(*words, code=125).count("\n") == 1
    assert names(klab) == ["busybox latest"] and not (tmp_path / "evil").exists()


@pytest.mark.slow
def test_an_image_that_is_not_here_is_fetched_from_its_registry(klab: Shell, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        name = f"{registry.address}/team/app"
        assert f"{name}:latest" in klab("run", "--pull", "never", f"{name}:latest", "true", code=125)
        klab("tag", "busybox", name)
        klab("push", name)
        klab("rmi", "-f", name, "busybox")
        assert klab("run", name, "echo", "fetched") == "fetched\n"
        asked = len(registry.requests)
        assert klab("run", name, "echo", "once") == "once\n" and len(registry.requests) == asked
        assert klab("run", "--pull", "always", name, "echo", "asked") == "asked\n" and len(registry.requests) > asked
    assert "not reachable" in klab("run", "--pull", "always", name, "true", code=125)


@pytest.mark.slow
def test_ps_names_the_image(klab: Shell, web: str) -> None:
    assert klab.lines("ps")[1].split()[1] == "busybox:latest"
    described = json.loads(klab("inspect", web))[0]
    assert described["image_id"] == klab.described("busybox")["Id"] and described["writes"]


@pytest.mark.slow
def test_commit_stops_the_container_meanwhile_and_lets_it_go_on(klab: Shell, web: str) -> None:
    klab("commit", web, "mine")
    assert klab("exec", web, "echo", "goes on") == "goes on\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "./no-such"], "no-such"),
        (["run", "No/Such", "true"], "No/Such"),
        (["history", "no-such"], "no-such"),
        (["rmi", "no-such"], "no-such"),
        (["tag", "no-such", "new"], "no-such"),
        (["tag", "busybox", "New"], "lower case"),
        (["image", "inspect", "no-such"], "no-such"),
        (["inspect", "no-such"], "no-such"),
        (["image", "make", "busybox", "--suite", "sid"], "suite"),
        (["image", "make", "debian", "--suite", "No Such"], "suite"),
        (["diff", "no-such"], "no-such"),
        (["commit", "no-such"], "no-such"),
        (["import", "/no/such/file"], "/no/such/file"),
        (["load", "-i", "/no/such/file"], "/no/such/file"),
        (["run", "--entrypoint", "sh", "/", "true"], "entrypoint"),
        (["image", "inspect", "--platform", "linux/s390x/x/y", "busybox"], "platform"),
    ],
)
def test_mistakes_are_one_line(klab: Shell, words: list[str], text: str) -> None:
    said = klab(*words, code=125)
    assert text in said and said.count("\n") == 1
    assert names(klab) == ["busybox latest"]
