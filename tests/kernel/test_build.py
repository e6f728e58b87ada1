"""RUN in containers: what a build does with the kernel, what it prints, and what is left of it, whoever ends it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builds import File, Kitchen, contents, layer
from waiting import soon

from kernel_lab import UsageError, records, state
from kernel_lab.cleanup import leftovers, remove
from kernel_lab.images import base
from kernel_lab.images.build import build
from kernel_lab.images.build_errors import BuildError
from kernel_lab.images.dockerfile import Dockerfile
from kernel_lab.images.image import Image
from kernel_lab.images.snapshots import beside

KLAB = [sys.executable, "-m", "kernel_lab.cli"]


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    made = Kitchen(tmp_path)
    base.make("busybox", made.store)
    return made


def ran(kitchen: Kitchen, *lines: str, **options: object) -> str:
    """What the last RUN prints."""
    kitchen.build("\n".join(["FROM busybox", *lines]), **options)
    return kitchen.output.rpartition(" ---> Running in ")[2].partition("\n")[2].partition("Removing intermediate container")[0]


def left(kitchen: Kitchen) -> list[str]:
    """What a build has not taken back."""
    places = (kitchen.store.path.parent / "builds", Path(state.data_path(), "layers"))
    return [str(path) for place in places if place.is_dir() for path in place.iterdir() if state.Creator.this().stamp in path.name]


# What RUN does.


def test_run_makes_a_layer_of_what_it_changes(kitchen: Kitchen) -> None:
    made = kitchen.build("FROM busybox\nRUN echo new > /new && rm /etc/hosts && mkdir -m 700 /d && ln -s x /d/link && rm -r /home && mkdir /home\n")
    found = layer(made.image)
    assert found["new"].content == "new\n" and found["d"].mode == 0o700 and found["d/link"] == File("link", 0o777, (0, 0), "x", found["d/link"].mtime)
    assert sorted(found) == [".", "d", "d/link", "etc", "etc/.wh.hosts", "home", "home/.wh..wh..opq", "new"]
    assert made.image.history[-1].line["created_by"].startswith("/bin/sh -c echo new > /new")
    assert made.steps[1].layer == made.image.layers[-1].blob.size


def test_a_run_that_changes_nothing_makes_no_layer(kitchen: Kitchen) -> None:
    made = kitchen.build("FROM busybox\nRUN cat /etc/passwd > /dev/null\nRUN chmod 755 /\n")
    assert [step.layer for step in made.steps] == [None, None, None] and len(made.image.layers) == 1
    assert [step.line.get("empty_layer") for step in made.image.history] == [None, True, True]
    assert len(kitchen.build("FROM busybox\nRUN chmod 711 /\n").image.layers) == 2


def test_it_is_printed_as_docker_does(kitchen: Kitchen) -> None:
    text = "FROM busybox\nRUN echo out; echo err >&2; printf half\nCMD x\n"
    made = kitchen.build(text, "app")
    ids = [step.image.short_id if step.image else "" for step in made.steps]
    container = re.search(r"Running in ([0-9a-f]{12})\n", kitchen.output)
    assert container and kitchen.output == (
        f"Step 1/3 : FROM busybox\n ---> {ids[0]}\n"
        f"Step 2/3 : RUN echo out; echo err >&2; printf half\n ---> Running in {container[1]}\nout\nerr\nhalf"
        f"Removing intermediate container {container[1]}\n ---> {ids[1]}\n"
        f"Step 3/3 : CMD x\n ---> {ids[2]}\nSuccessfully built {ids[2]}\nSuccessfully tagged app:latest\n"
    )
    kitchen.build(text)
    assert kitchen.output == (
        f"Step 1/3 : FROM busybox\n ---> {ids[0]}\n"
        f"Step 2/3 : RUN echo out; echo err >&2; printf half\n ---> Using cache\n ---> {ids[1]}\n"
        f"Step 3/3 : CMD x\n ---> Using cache\n ---> {ids[2]}\nSuccessfully built {ids[2]}\n"
    )


def test_what_is_printed_comes_at_once(kitchen: Kitchen) -> None:
    times: dict[str, float] = {}
    kitchen.build("FROM busybox\nRUN echo first; sleep 0.5; echo second\n", output=lambda text: times.update({text: time.monotonic()}))
    assert times["second\n"] - times["first\n"] > 0.3


def test_much_output_and_none_of_it_is_lost(kitchen: Kitchen) -> None:
    assert len(ran(kitchen, "RUN yes | head -c 3000000; printf '\\303'; sleep 0.1; printf '\\244'").replace("ä", "")) == 3_000_000
    assert "ä" in kitchen.output


def test_run_sees_the_variables_the_user_and_the_directory(kitchen: Kitchen) -> None:
    kitchen.write("a")
    lines = ["ARG V=1", "ARG GIVEN", "ARG UNSET", "ENV E=2 V2=$V", "WORKDIR /new/dir"]
    command = "RUN pwd; id -u; echo $V-$GIVEN-${UNSET-unset}-$E-$V2-$http_proxy-$HOME"
    shown = ran(kitchen, *lines, command, args={"GIVEN": "g", "HTTP_PROXY": "p"})
    assert shown.split() == ["/new/dir", "0", "1-g-unset-2-1-p-/root"]
    assert Image(kitchen.store, kitchen.store.images()[-1]).history[-1].line["created_by"].startswith("|2 GIVEN=g V=1 /bin/sh -c pwd;")
    assert ran(kitchen, 'SHELL ["/bin/sh", "-eu", "-c"]', "RUN echo $-").strip() in ("eu", "uce", "ceu")
    assert ran(kitchen, 'RUN ["echo", "$HOME", "a b"]').strip() == "$HOME a b"
    assert ran(kitchen, "RUN <<E\necho one\necho two\nE").split() == ["one", "two"]
    assert ran(kitchen, "RUN cat <<E - \nthree $((1+2))\nE").split() == ["three", "3"]
    assert ran(kitchen, "RUN <<E\n#!/bin/awk -f\nBEGIN { print 6 * 7 }\nE").split() == ["42"]


def test_another_argument_is_another_step(kitchen: Kitchen) -> None:
    text = "FROM busybox\nARG V=1\nRUN echo $V\nENV V=3\nRUN echo $V > /x\n"
    builds = [kitchen.build(text, args=args) for args in ({}, {}, {"V": "2"}, {"V": "1"})]
    cached = [[step.cached for step in made.steps] for made in builds]
    # What ENV has replaced is no argument any more.
    assert [step.line["created_by"] for step in builds[0].image.history][2::2] == ["|1 V=1 /bin/sh -c echo $V", "/bin/sh -c echo $V > /x"]
    assert cached[1] == [False, True, True, True, True]
    assert cached[2] == [False, True, False, False, False]
    assert cached[3] == cached[1]


@pytest.mark.needs("root")
def test_run_runs_as_the_user_of_the_image(kitchen: Kitchen) -> None:
    lines = ["RUN echo 'app:x:7:8::/srv:/bin/sh' >> /etc/passwd && echo 'more:x:9:app' >> /etc/group", "USER app", "WORKDIR /srv/app"]
    command = "RUN id -u; id -G; echo $HOME; touch mine; touch /root/x 2>&1 | head -c 5"
    assert ran(kitchen, *lines, command).split() == ["7", "8", "9", "/srv", "touch"]
    top = Image.find(kitchen.store, kitchen.build("\n".join(["FROM busybox", *lines, "RUN touch mine\n"])).image.id)
    assert layer(top)["srv/app/mine"].owner == (7, 8)


@pytest.mark.needs("user", "newuidmap")
def test_an_ordinary_users_run_has_all_ids_that_he_was_granted(kitchen: Kitchen) -> None:
    made = kitchen.build("FROM busybox\nRUN touch /own /given && chown 7:8 /given\nUSER 5:6\nRUN touch /tmp/own; id -u\n")
    assert layer(made.image, 1)["given"].owner == (7, 8) and layer(made.image, 2)["tmp/own"].owner == (5, 6)


def test_a_file_that_is_anybodys_is_so_for_an_ordinary_user_too(kitchen: Kitchen) -> None:
    """Also in a directory that a layer below has given to somebody."""
    kitchen.write("a", "d/c")
    os.link(kitchen.context / "d/c", kitchen.context / "d/d")
    text = "FROM busybox AS one\nCOPY --chown=1000:1001 a /home/app/a\nCOPY a /home/app/b\nCOPY --chown=7:8 d /tmp/\nFROM scratch\n"
    assert layer(kitchen.build(f"{text}COPY --from=one /tmp/d /d\n").image)["d"].owner == (7, 8)
    text += "COPY --from=one /home /x\n"
    owners = {name: file.owner for name, file in layer(kitchen.build(text).image).items()}
    assert owners == {"x": (0, 0), "x/app": (1000, 1001), "x/app/a": (1000, 1001), "x/app/b": (0, 0)}


def test_run_has_namespaces_of_its_own_and_no_network(kitchen: Kitchen) -> None:
    shown = ran(kitchen, "RUN hostname; echo $$; ls /sys/class/net; ls /proc | grep -c '^[0-9]'; cat /etc/resolv.conf")
    assert shown.split()[:3] == ["build", "1", "lo"]
    assert ran(kitchen, "RUN --network=none ls /sys/class/net", network=None).split() == ["lo"]


def test_run_has_the_hosts_network_when_it_is_given(kitchen: Kitchen) -> None:
    links = set(os.listdir("/sys/class/net"))
    made = kitchen.build("FROM busybox\nRUN ls /sys/class/net; cat /etc/resolv.conf\n", network=None)
    shown = kitchen.output
    assert all(f"{link}\n" in shown for link in links) and Path("/etc/resolv.conf").read_text() in shown
    assert len(made.image.layers) == 1 or "etc/resolv.conf" not in layer(made.image)


@pytest.mark.needs("root")
def test_limits_are_those_of_every_run(kitchen: Kitchen) -> None:
    with pytest.raises(BuildError, match=r"Dockerfile:2: RUN: The command .* returned a non-zero code: (137|1|2)"):
        kitchen.build("FROM busybox\nRUN x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}\n", limits={"memory": "20M", "swap": 0})
    with pytest.raises(BuildError, match="RUN"):
        kitchen.build("FROM busybox\nRUN for each in 1 2 3 4 5 6; do sleep 1 & done; wait\n", limits={"pids": 4})
    assert "can't fork" in kitchen.output


# Mounts.


def test_what_is_mounted_is_seen_and_not_in_the_image(kitchen: Kitchen) -> None:
    kitchen.write("d/a", "d/b.log")
    kitchen.write(**{".dockerignore": "*.log\n**/*.log\n"})
    mounts = "--mount=source=d,target=/in/dir --mount=type=bind,source=d/a,target=/in/file --mount=type=tmpfs,target=/memory"
    command = "ls /in/dir; cat /in/file; echo; touch /memory/x; touch /in/dir/x 2>/dev/null || echo read-only; echo 1 > /out"
    assert ran(kitchen, f"RUN {mounts} {command}").split() == ["a", "d/a", "read-only"]
    top = Image(kitchen.store, kitchen.store.images()[-1])
    assert list(layer(top)) == [".", "out"]


def test_a_mount_shows_a_stage_and_what_is_written_there_is_gone(kitchen: Kitchen) -> None:
    first = "FROM busybox AS one\nRUN echo 1 > /made\nFROM busybox\n"
    second = "RUN --mount=from=one,target=/one,rw cat /one/made; echo 2 > /one/made; mkdir -p /one/new\n"
    kitchen.build(f"{first}{second}RUN --mount=from=one,source=made,target=/m cat /m\n")
    assert kitchen.output.count("\n1\n") == 2 and not left(kitchen)


def test_a_mount_counts_in_the_cache(kitchen: Kitchen) -> None:
    kitchen.write("d/a")
    text = "FROM busybox\nRUN --mount=source=d,target=/in cat /in/a\n"
    kitchen.build(text)
    assert kitchen.build(text).steps[1].cached
    kitchen.write(**{"d/a": "new"})
    assert not kitchen.build(text).steps[1].cached
    for flag in ("--mount=type=tmpfs,target=/t", "--network=none", ""):
        assert [kitchen.build(f"FROM busybox\nRUN {flag} true\n").steps[1].cached for _ in range(2)] == [False, True]


def test_a_cache_mount_stays_for_the_next_build(kitchen: Kitchen) -> None:
    for count in (1, 2):
        line = "RUN --mount=type=cache,target=/cache,id=mine,sharing={} echo x >> /cache/file; wc -l < /cache/file"
        assert ran(kitchen, line.format("locked" if count == 1 else "shared"), cache=False).split() == [str(count)]
    assert ran(kitchen, "RUN --mount=type=cache,target=/cache,ro ls /cache").split() == []


def test_a_secret_is_seen_by_its_run_alone(kitchen: Kitchen) -> None:
    secrets = {"key": b"s3cret"}
    line = "RUN --mount=type=secret,id=key --mount=type=secret,id=none --mount=type=secret,id=key,target=/k cat /run/secrets/key /k; ls /run/secrets"
    assert ran(kitchen, line, secrets=secrets).split() == ["s3crets3cretkey"]
    image = Image(kitchen.store, kitchen.store.images()[-1])
    assert not any("s3cret" in text for text in contents(image).values()) and "s3cret" not in json.dumps(dict(image.config.json()))
    assert len(image.layers) == 1


def test_what_a_run_does_to_the_places_of_its_mounts_counts(kitchen: Kitchen) -> None:
    mount = "--mount=type=tmpfs,target=/home/new/er"
    made = kitchen.build(f"FROM busybox\nRUN {mount} true\nRUN {mount} echo 1 > /home/new/file\nRUN {mount} chmod 711 /home\n")
    assert [step.layer is not None for step in made.steps] == [False, False, True, True]
    assert list(layer(made.image, 1)) == [".", "home", "home/new", "home/new/file"] and layer(made.image)["home"].mode == 0o711


@pytest.mark.needs("root")
def test_a_link_in_place_of_a_mount_point_removes_nothing_outside(kitchen: Kitchen, tmp_path: Path) -> None:
    (tmp_path / "victim/inner").mkdir(parents=True)
    # Unmounted inside, its place is the command's.
    begin = "FROM busybox\nRUN --mount=type=tmpfs,target=/a/inner umount /a/inner && rm -r /a &&"
    kitchen.build(f"{begin} ln -s {tmp_path}/victim /a\n")
    assert (tmp_path / "victim/inner").is_dir()
    made = kitchen.build(f"{begin} mkdir -p /other/inner && ln -s other /a\n")
    assert "other/inner" in layer(made.image)


def test_a_directory_that_is_made_anew_hides_what_was_in_it(kitchen: Kitchen) -> None:
    made = kitchen.build("FROM busybox\nRUN --mount=type=tmpfs,target=/etc/new umount /etc/new && rm -r /etc && mkdir -p /etc/new\n")
    assert list(layer(made.image)) == [".", "etc", "etc/.wh..wh..opq"]


# What fails, and what is left then.


@pytest.mark.parametrize(
    ("line", "code", "why"),
    [
        ("RUN exit 3", 3, "The command '/bin/sh -c exit 3' returned a non-zero code: 3"),
        ("RUN kill -9 $$; sleep 0.1; false", 1, "non-zero code: 1"),
        ('RUN ["/no/such"]', 1, "/no/such: not found"),
        ('RUN ["no-such"]', 1, "no-such: not found"),
        ('RUN ["/etc/passwd"]', 1, "/etc/passwd: permission denied"),
    ],
)
def test_a_command_that_fails_says_where(line: str, code: int, why: str, kitchen: Kitchen) -> None:
    with pytest.raises(BuildError) as error:
        kitchen.build(f"FROM busybox\nENV A=1\n{line}\n", "app")
    assert str(error.value).startswith("Dockerfile:3: RUN: ") and why in str(error.value) and error.value.code == code
    assert not left(kitchen) and not [record for record in records.all() if record.alive()]
    assert kitchen.store.verify() == {} and kitchen.store.prune() == ((), ()) and not kitchen.store.named("app")
    assert kitchen.build("FROM busybox\nENV A=1\n").steps[1].cached  # docker keeps it, too


def test_a_user_that_is_nobody_is_an_error_with_its_place(kitchen: Kitchen) -> None:
    with pytest.raises(UsageError, match="Dockerfile:3: RUN: user 'nobody-knows'"):
        kitchen.build("FROM busybox\nUSER nobody-knows\nRUN true\n")


def test_an_image_without_a_shell_says_so(kitchen: Kitchen) -> None:
    with pytest.raises(BuildError, match="Dockerfile:3: RUN: /bin/sh: not found"):
        kitchen.build("FROM scratch\nCOPY --from=busybox /etc/hosts /\nRUN true\n")


@contextmanager
def building(kitchen: Kitchen, text: str, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """`klab build` in a process of its own, once the command says `begun`."""
    (kitchen.context / "Dockerfile").write_text(text)
    env = os.environ | {"KERNEL_LAB_DATA": str(kitchen.store.path.parent), "PYTHONUNBUFFERED": "1"}
    command = [*KLAB, "build", *options, str(kitchen.context)]
    with subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                if line == "begun\n":
                    yield process
                    break
        finally:
            process.kill()


SLOW = "FROM busybox\nRUN echo 1 > /first\nRUN echo begun; echo 2 > /second; sleep 60\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_ended_leaves_nothing_but_its_cache(number: signal.Signals, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    with building(kitchen, SLOW, "-t", "app") as process:
        (record,) = [record for record in records.all() if record.alive() and record.creator.pid == process.pid]
        process.send_signal(number)
        code = process.wait(30)
    assert code == {signal.SIGINT: 130}.get(number, -number)
    assert soon(lambda: not record.alive())
    monkeypatch.setenv("KERNEL_LAB_DATA", str(kitchen.store.path.parent))
    if number != signal.SIGINT:
        # A janitor does the same, once it has noticed.
        assert soon(lambda: not [found for found in leftovers() if str(process.pid) in found.name] or remove(leftovers()))
    stamp = f"p{process.pid}t"
    assert soon(lambda: not [path for path in kitchen.store.path.parent.glob("*/*") if stamp in path.name])
    kitchen.store.prune()
    beside(kitchen.store).prune(kitchen.store)
    assert kitchen.store.verify() == {} and not kitchen.store.named("app")
    assert [step.cached for step in kitchen.build("FROM busybox\nRUN echo 1 > /first\n").steps] == [False, True]


def test_builds_at_once_and_somebody_who_prunes(kitchen: Kitchen) -> None:
    kitchen.write("a")
    text = "FROM busybox\nCOPY a /a\nRUN cat /a > /b\nCOPY a /c\nRUN cat /b /c > /d\n"
    done = threading.Event()
    wrong: list[BaseException] = []

    def prune() -> None:
        while not done.wait(0.01):
            kitchen.store.prune(unnamed=True)
            beside(kitchen.store).prune(kitchen.store)

    def make(name: str) -> None:
        try:
            for number in range(3):
                made = build(kitchen.context, kitchen.store, [f"{name}:{number}"], dockerfile=Dockerfile.parse(text), output=lambda text: None)
                assert contents(made.image)["d"] == "aa"
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=make, args=[f"app-{number}"]) for number in range(2)]
    pruning = threading.Thread(target=prune)
    for thread in (*threads, pruning):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    pruning.join()
    assert wrong == [] and kitchen.store.verify() == {} and not left(kitchen)


# The command.


def klab(kitchen: Kitchen, *words: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"KERNEL_LAB_DATA": str(kitchen.store.path.parent)}
    return subprocess.run([*KLAB, *words], capture_output=True, text=True, timeout=120, env=env, **settings)  # type: ignore[call-overload,no-any-return]


def test_klab_build_has_dockers_options(kitchen: Kitchen, tmp_path: Path) -> None:
    kitchen.write(Dockerfile="FROM busybox AS one\nARG V\nRUN --mount=type=secret,id=s cat /run/secrets/s; echo $V\nFROM one AS two\nENV T=2\n")
    (tmp_path / "secret").write_text("hidden\n")
    words = ["-t", "one:1", "-t", "more", "--build-arg", "V=given", "--target", "one", "--label", "l=1", "--secret", f"id=s,src={tmp_path}/secret"]
    done = klab(kitchen, "build", *words, "--iidfile", str(tmp_path / "id"), str(kitchen.context))
    assert done.returncode == 0, done.stderr
    assert "\nhidden\ngiven\n" in done.stdout and done.stdout.endswith("Successfully tagged one:1\nSuccessfully tagged more:latest\n")
    image = Image.find(kitchen.store, "one:1")
    assert (tmp_path / "id").read_text() == image.id == Image.find(kitchen.store, "more").id
    assert image.settings["Labels"] == {"l": "1"}
    quiet = klab(kitchen, "build", "-q", "--no-cache", str(kitchen.context))
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", quiet.stdout) and quiet.stderr == ""
    shown = klab(kitchen, "images").stdout
    assert shown.count("<none>") == 2 and klab(kitchen, "images", "-a").stdout.count("<none>") > 2


@pytest.mark.parametrize(
    ("words", "input", "code", "text"),
    [
        (["-"], "FROM busybox\nRUN echo from $0; exit 4\n", 4, "klab: Dockerfile:2: RUN: The command"),
        (["-f", "-", "."], "FROM busybox\nCOPY missing /\n", 125, "klab: Dockerfile:2: COPY: missing: there is no such file"),
        (["-"], "FORM busybox\n", 125, "klab: Dockerfile:1: there is no instruction 'FORM'; did you mean FROM?"),
        (["-f", "-", "-"], "", 125, "both read the standard input"),
        (["-f", "nowhere", "."], "", 125, "nowhere: No such file or directory"),
        (["/nowhere"], "", 125, "there is no such directory"),
        (["--network", "mine", "-"], "FROM busybox\n", 125, "--network mine"),
        (["--secret", "s", "-"], "FROM busybox\n", 125, "id=NAME,src=FILE"),
        (["--memory", "many", "-"], "FROM busybox\n", 125, "many"),
        (["-t", "Wrong", "-"], "FROM busybox\n", 125, "Wrong"),
        ([], "", 2, "PATH"),
    ],
)
def test_what_klab_build_says_when_it_fails(words: list[str], input: str, code: int, text: str, kitchen: Kitchen) -> None:
    done = klab(kitchen, "build", *words, input=input, cwd=kitchen.context)
    assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(kitchen.store.path.parent.glob("builds/*"))


def test_klab_build_reads_an_archive(kitchen: Kitchen) -> None:
    kitchen.write("a", Dockerfile="FROM busybox\nCOPY a /here\nRUN cat /here\n")
    packed = subprocess.run(["tar", "-cz", "."], cwd=kitchen.context, stdout=subprocess.PIPE, check=True).stdout
    env = os.environ | {"KERNEL_LAB_DATA": str(kitchen.store.path.parent)}
    done = subprocess.run([*KLAB, "build", "-"], input=packed, capture_output=True, timeout=120, env=env)
    assert done.returncode == 0 and b"\naRemoving intermediate" in done.stdout
    assert not list(kitchen.store.path.parent.glob("builds/*"))
