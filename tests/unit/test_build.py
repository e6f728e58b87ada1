"""A build without a container: what instructions say of an image, stages, the cache, and what is printed."""

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from builds import TIME, Kitchen, archive, contents

from kernel_lab import UsageError
from kernel_lab.images import build_cache, build_stage
from kernel_lab.images.build import build
from kernel_lab.images.build_context import Context, from_stream
from kernel_lab.images.build_mounts import read
from kernel_lab.images.build_output import Bar, automatic
from kernel_lab.images.descriptor import Platform
from kernel_lab.images.dockerfile import Dockerfile
from kernel_lab.images.image import Image
from kernel_lab.images.store import name_of

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    made = Kitchen(tmp_path)
    made.base("base", {"file": ""}, {"Cmd": ["below"], "Env": ["PATH=/bin", "A=1"]})
    return made


def lines(image: Image) -> list[str]:
    """Its history, without the shell's part and what the base has."""
    return [line.line["created_by"].removeprefix("/bin/sh -c #(nop) ") for line in image.history]


# Settings.


@pytest.mark.parametrize(
    ("text", "settings", "line"),
    [
        ("ENV B=2 A='x y'", {"Env": ["PATH=/bin", "A=x y", "B=2"]}, "ENV B=2 A=x y"),
        ("ENV B=$A", {"Env": ["PATH=/bin", "A=1", "B=1"]}, "ENV B=1"),
        ("ARG B=$A c", {}, "ARG B=$A c"),
        ("LABEL a=1 b.c='d e'", {"Labels": {"a": "1", "b.c": "d e"}}, "LABEL a=1 b.c=d e"),
        ("CMD a b", {"Cmd": ["/bin/sh", "-c", "a b"]}, 'CMD ["/bin/sh" "-c" "a b"]'),
        ('CMD ["a", "$A"]', {"Cmd": ["a", "$A"]}, 'CMD ["a" "$A"]'),
        ("CMD []", {"Cmd": None}, "CMD []"),
        ('ENTRYPOINT ["a"]', {"Entrypoint": ["a"], "Cmd": None}, 'ENTRYPOINT ["a"]'),
        ("ENTRYPOINT []", {"Cmd": None}, "ENTRYPOINT []"),
        ("EXPOSE 80 53/udp 8000-8001", {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}},
         "EXPOSE 53/udp 80/tcp 8000/tcp 8001/tcp"),
        ("VOLUME /a $A", {"Volumes": {"/a": {}, "1": {}}}, "VOLUME [/a 1]"),
        ("USER app:more", {"User": "app:more"}, "USER app:more"),
        ("STOPSIGNAL SIGQUIT", {"StopSignal": "SIGQUIT"}, "STOPSIGNAL SIGQUIT"),
        ('SHELL ["/bin/bash", "-c"]', {"Shell": ["/bin/bash", "-c"]}, "/bin/bash -c #(nop) SHELL [/bin/bash -c]"),
        ("HEALTHCHECK --interval=1s --retries=2 CMD a b", {"Healthcheck": {"Test": ["CMD-SHELL", "a b"], "Interval": 10**9, "Retries": 2}},
         'HEALTHCHECK {"Test": ["CMD-SHELL", "a b"], "Interval": 1000000000, "Retries": 2}'),
        ("HEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}, 'HEALTHCHECK {"Test": ["NONE"]}'),
        ("ONBUILD RUN $A", {"OnBuild": ["RUN $A"]}, "ONBUILD RUN $A"),
    ],
)  # fmt: skip
def test_an_instruction_says_of_the_image(text: str, settings: dict[str, Any], line: str, kitchen: Kitchen) -> None:
    image = kitchen.build(f"FROM base\n{text}\n").image
    whole = {"Cmd": ["below"], "Env": ["PATH=/bin", "A=1"]} | settings
    assert image.settings == {name: value for name, value in whole.items() if value is not None}
    assert lines(image)[1] == line and image.history[1].layer is None


def test_an_entrypoint_takes_away_a_cmd_of_the_base_and_no_other(kitchen: Kitchen) -> None:
    image = kitchen.build('FROM base\nCMD ["mine"]\nENTRYPOINT ["e"]\n').image
    assert image.settings["Cmd"] == ["mine"] and image.settings["Entrypoint"] == ["e"]
    kitchen.build('FROM base\nCMD ["mine"]\n', "middle")
    assert "Cmd" not in kitchen.build('FROM middle\nENTRYPOINT ["e"]\n').image.settings


def test_what_is_said_twice_is_together_or_the_later(kitchen: Kitchen) -> None:
    text = "FROM base\nLABEL a=1 b=1\nLABEL a=2\nEXPOSE 1\nEXPOSE 2\nVOLUME /a\nVOLUME /b\nUSER a\nUSER b\nMAINTAINER One\nMAINTAINER Two\n"
    image = kitchen.build(text).image
    assert image.settings["Labels"] == {"a": "2", "b": "1"} and set(image.settings["ExposedPorts"]) == {"1/tcp", "2/tcp"}  # type: ignore[call-overload]
    assert set(image.settings["Volumes"]) == {"/a", "/b"} and image.settings["User"] == "b" and image.config.author == "Two"  # type: ignore[call-overload]
    assert [step.line.get("author") for step in image.history[-2:]] == ["One", "Two"]


def test_a_path_is_given_where_the_base_has_none(kitchen: Kitchen) -> None:
    """To images of nothing, too, as docker does."""
    kitchen.write("a")
    assert kitchen.build("FROM scratch\nCOPY a /\n").image.settings == {"Env": [PATH]}
    kitchen.base("bare", {"x": ""})
    assert kitchen.build("FROM bare\nENV B=$PATH\n").image.settings["Env"] == [PATH, f"B={PATH.removeprefix('PATH=')}"]


def test_variables_come_from_args_and_the_command_line(kitchen: Kitchen) -> None:
    text = "ARG IMAGE=none\nARG V=1\nFROM ${IMAGE}\nARG V\nARG W=w-$V\nARG X\nENV E=$V-$W-$X-$TARGETOS\nARG TARGETOS\nENV F=$TARGETOS\n"
    made = kitchen.build(text, args={"IMAGE": "base", "X": "given"})
    assert made.image.settings["Env"] == ["PATH=/bin", "A=1", "E=1-w-1-given-", "F=linux"]
    assert "not consumed" not in kitchen.output
    kitchen.build("FROM base\n", args={"UNKNOWN": "1", "http_proxy": "p"})
    assert "[Warning] One or more build-args ['UNKNOWN'] were not consumed\n" in kitchen.output


def test_labels_of_the_command_line_are_the_last_step(kitchen: Kitchen) -> None:
    made = kitchen.build("FROM base\nLABEL a=1\n", labels={"a": "$A 'x'", "b": ""})
    assert made.image.settings["Labels"] == {"a": "$A 'x'", "b": ""}
    assert "Step 3/3 : LABEL \"a\"=\"$A 'x'\" \"b\"=\"\"\n" in kitchen.output


# Stages.


def test_only_the_stages_that_the_target_needs_are_built(kitchen: Kitchen) -> None:
    kitchen.write("a")
    first = "FROM base AS one\nCOPY a /one\nFROM missing AS never\nRUN false\n"
    text = f"{first}FROM one AS two\nENV TWO=2\nFROM scratch AS three\nCOPY --from=two /one /three\n"
    made = kitchen.build(text)
    assert contents(made.image) == {"three": "a"}
    assert [step.instruction.split()[0] for step in made.steps] == ["FROM", "COPY", "FROM", "ENV", "FROM", "COPY"]
    two = kitchen.build(text, target="TWO").image
    assert contents(two) == {"one": "a"} and two.settings["Env"] == ["PATH=/bin", "A=1", "TWO=2"]
    assert kitchen.build(text, target="0").image.settings["Cmd"] == ["below"]
    with pytest.raises(UsageError, match="--target=four"):
        kitchen.build(text, target="four")


def test_a_stage_has_the_args_of_the_one_below(kitchen: Kitchen) -> None:
    made = kitchen.build("FROM base AS one\nARG V=1\nFROM one\nENV E=$V\n")
    assert "E=1" in made.image.settings["Env"]  # type: ignore[operator]


def test_an_image_alone_is_given_another_name(kitchen: Kitchen) -> None:
    made = kitchen.build("FROM base\n", "other:1", "other:2")
    assert set(made.image.names) == {f"docker.io/library/{name}" for name in ("base:latest", "other:1", "other:2")}


def test_onbuild_is_carried_out_by_who_builds_upon_it_and_only_there(kitchen: Kitchen) -> None:
    kitchen.write("a")
    kitchen.build("FROM base\nONBUILD ENV B=$A\nONBUILD COPY a /here/\nONBUILD LABEL l=1\n", "parent")
    child = kitchen.build("FROM parent\nENV C=$B\n", "child").image
    assert child.settings["Env"] == ["PATH=/bin", "A=1", "B=1", "C=1"] and child.settings["Labels"] == {"l": "1"}
    assert "OnBuild" not in child.settings and "# Executing 3 build triggers\n" in kitchen.output
    assert "build trigger" not in (kitchen.build("FROM child\nENV D=1\n") and kitchen.output)
    (kitchen.context / "a").unlink()
    with pytest.raises(UsageError, match="Dockerfile:1: COPY: a: there is no such file"):
        kitchen.build("FROM parent\n")


def test_a_base_image_is_fetched_when_it_is_not_there_or_pulled(kitchen: Kitchen) -> None:
    asked: list[tuple[str, Platform | None]] = []

    def fetch(name: str, platform: Platform | None) -> None:
        asked.append((name, platform))
        kitchen.base(name, {"x": ""})

    kitchen.build("FROM base\n", fetch=fetch)
    assert asked == []
    kitchen.build("FROM new AS one\nFROM base\nCOPY --from=newer /x /\nCOPY --from=one /x /\n", fetch=fetch)
    assert asked == [("new", None), ("newer", None)]
    kitchen.build("FROM base\n", fetch=fetch, pull=True)
    assert asked[2:] == [("base", None)]
    with pytest.raises(UsageError, match="Dockerfile:1: FROM: 'nowhere': there is no image of this name or id"):
        kitchen.build("FROM nowhere\n")


def test_a_platform_is_asked_for(kitchen: Kitchen) -> None:
    kitchen.write("a")
    image = kitchen.build("FROM scratch\nARG TARGETPLATFORM\nENV P=$TARGETPLATFORM\nCOPY a /\n", platform="linux/arm/v7").image
    assert image.platform == Platform("arm", "linux", "v7") and "P=linux/arm/v7" in image.settings["Env"]  # type: ignore[operator]
    kitchen.build("FROM --platform=linux/s390x scratch\nCOPY a /\n", "foreign")
    for options in ({"platform": "linux/arm64"}, {}):
        flag = "" if options else "--platform=linux/arm64 "
        with pytest.raises(UsageError, match="Dockerfile:1: FROM: foreign: runs on linux/s390x, and linux/arm64 was asked for"):
            kitchen.build(f"FROM {flag}foreign\n", **options)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("FROM scratch\n", "Dockerfile:1: FROM: nothing comes after it"),
        ("FROM scratch\nRUN x\n", "Dockerfile:2: RUN: there is nothing in scratch that could run"),
        ("FROM base\nRUN --network=mine x\n", "Dockerfile:2: RUN: --network=mine: there is none, host"),
        ("FROM base\nRUN --network=host x\n", "Dockerfile:2: RUN: --network=host: this machine's network is to be given to the whole build"),
        ("FROM base\nRUN --security=insecure x\n", "Dockerfile:2: RUN: --security=insecure"),
        ("FROM base\nRUN --mount=type=ssh x\n", "Dockerfile:2: RUN: --mount=type=ssh: there is bind, cache, tmpfs, secret"),
        ("FROM base\nRUN --mount=type=tmpfs,target=/x,colour=red x\n", "Dockerfile:2: RUN: --mount=type=tmpfs: there is no colour"),
        ("FROM base\nRUN --mount=type=cache x\n", "it needs a target"),
        ("FROM base\nRUN --mount=type=cache,target=/x,sharing=private x\n", "sharing=private"),
        ("FROM base\nRUN --mount=type=cache,target=/x,mode=rwx x\n", "mode is an octal number"),
        ("FROM base\nRUN --mount=type=secret,id=s,required=true x\n", "s is required, and was not given: --secret id=s,src=FILE"),
        ("FROM base\nRUN --mount=target=/x,source=* x\n", "Dockerfile:2: RUN: --mount: source=*: these are 2"),
        ("FROM base\nRUN --mount=target=/x,from=later x\nFROM base AS later\n", "later"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_says_where(text: str, why: str, kitchen: Kitchen) -> None:
    kitchen.write("a", "b")
    with pytest.raises(UsageError) as error:
        kitchen.build(text, target="0")
    assert why in str(error.value) and str(error.value).startswith("Dockerfile:")
    assert kitchen.store.verify() == {} and kitchen.store.prune() == ((), ())


def test_nothing_is_built_for_a_name_that_is_none(kitchen: Kitchen) -> None:
    for options in ({"platform": "mainframe"}, {}):
        with pytest.raises(UsageError):
            kitchen.build("FROM base\nENV B=1\n", *([] if options else ["Wrong Name"]), **options)
    assert len(kitchen.store.images()) == 1


def test_the_fields_of_a_mount() -> None:
    assert read('type=bind,"src=a,b",dst=/x,readonly') == {"type": "bind", "source": "a,b", "target": "/x", "ro": ""}
    assert read("type=secret,id=key") == {"type": "secret", "id": "key", "target": "/run/secrets/key"}


# The cache.


def hits(kitchen: Kitchen, text: str, **options: Any) -> str:
    return "".join("x" if step.cached else "." for step in kitchen.build(text, **options).steps)


def test_a_step_that_was_made_before_is_found(kitchen: Kitchen) -> None:
    kitchen.write("a", "b")
    text = "FROM base\nENV B=1\nCOPY a /x/\nLABEL l=1\n"
    assert hits(kitchen, text) == "...."
    first = kitchen.build(text)
    assert hits(kitchen, text) == ".xxx" and kitchen.output.count(" ---> Using cache\n") == 3
    assert kitchen.build(text, "named").image.id == first.image.id
    assert hits(kitchen, text) == ".xxx"  # with a name, too
    assert hits(kitchen, text.replace("l=1", "l=2")) == ".xx."
    assert hits(kitchen, text.replace("B=1", "B=2")) == "...."
    assert hits(kitchen, text, cache=False) == "...."


def test_files_count_by_their_content_and_mode_and_not_by_their_time(kitchen: Kitchen) -> None:
    kitchen.write("d/a", "d/b", "other")
    text = "FROM base\nCOPY d /x/\n"
    hits(kitchen, text)
    kitchen.write("other", "new")
    (kitchen.context / "d/a").touch()
    assert hits(kitchen, text) == ".x"
    for change in (
        lambda: kitchen.write(**{"d/a": "changed"}),
        lambda: (kitchen.context / "d/a").chmod(0o600),
        lambda: (kitchen.context / "d/b").rename(kitchen.context / "d/c"),
        lambda: kitchen.write("d/more"),
        lambda: kitchen.write(**{".dockerignore": "d/c"}),
    ):
        change()
        assert hits(kitchen, text) == ".."
        assert hits(kitchen, text) == ".x"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("COPY a /x", "COPY a /y"),
        ("COPY a /x", "ADD a /x"),
        ("COPY a /x", "COPY --chown=1 a /x"),
        ("COPY a /x", "COPY --chmod=700 a /x"),
        ("COPY <<E /x\n1\nE", "COPY <<E /x\n2\nE"),
        ("WORKDIR /x", "WORKDIR /y"),
        ("ENV B=1", "LABEL B=1"),
        ("CMD a b", 'CMD ["a b"]'),
    ],
)
def test_what_is_written_otherwise_is_made_anew(one: str, other: str, kitchen: Kitchen) -> None:
    kitchen.write("a")
    assert hits(kitchen, f"FROM base\n{one}\n") == hits(kitchen, f"FROM base\n{other}\n") == ".."
    assert hits(kitchen, f"FROM base\n{one}\n") == ".x"


def test_whether_names_are_kept_counts_and_which(kitchen: Kitchen) -> None:
    kitchen.write("s/a/f", f="same")
    copies = ["COPY s/a /x/", "COPY --parents s/a /x/", "COPY --parents s/./a /x/"]
    assert len({contents_of(kitchen.build(f"FROM base\n{copy}").image) for copy in copies}) == 3
    (kitchen.context / "s/a").rename(kitchen.context / "s/b")
    assert not kitchen.build("FROM base\nCOPY --parents s/b /x/").steps[1].cached
    assert kitchen.build("FROM base\nCOPY s/b /x/").steps[1].cached


def test_files_that_change_while_they_are_copied_are_refused(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen.write(file="one")
    put = build_stage.put_layer

    def late(*given: Any) -> Any:
        made = put(*given)
        kitchen.write(file="two")
        return made

    monkeypatch.setattr(build_stage, "put_layer", late)
    with pytest.raises(UsageError, match="changed while they were copied"):
        kitchen.build("FROM base\nCOPY file /")
    monkeypatch.undo()
    kitchen.write(file="one")
    assert not kitchen.build("FROM base\nCOPY file /").steps[1].cached


def contents_of(image: Image) -> str:
    return str(sorted(contents(image)))


def test_another_base_is_another_beginning(kitchen: Kitchen) -> None:
    kitchen.base("changed", {"file": "2"})
    assert hits(kitchen, "FROM base\nENV B=1\n") == hits(kitchen, "FROM changed\nENV B=1\n") == ".."
    kitchen.write("a")
    assert hits(kitchen, "FROM scratch\nCOPY a /\n") == hits(kitchen, "FROM scratch\nCOPY a /\n", platform="linux/s390x") == ".."


def test_a_stage_that_has_changed_is_copied_from_anew(kitchen: Kitchen) -> None:
    text = "FROM base AS one\nCOPY a /a\nCOPY b /b\nFROM scratch\nCOPY --from=one /a /\n"
    kitchen.write("a", "b")
    hits(kitchen, text)
    kitchen.write(b="new")
    assert hits(kitchen, text) == ".x..x"  # the file that is copied is still the same
    kitchen.write(a="new")
    assert hits(kitchen, text) == "....."


def test_what_is_pruned_is_made_anew(kitchen: Kitchen) -> None:
    kitchen.write("a")
    text = "FROM base\nENV B=1\nCOPY a /x/\nLABEL l=1\n"
    kitchen.build(text, "named")
    kitchen.store.prune(unnamed=True)
    assert hits(kitchen, text) == "...."
    kitchen.store.remove("named")
    assert kitchen.store.verify() == {}
    assert hits(kitchen, text) in ("....", ".xx.", ".xxx")


def test_an_image_of_which_something_is_missing_is_made_anew(kitchen: Kitchen) -> None:
    kitchen.write("a")
    text = "FROM base\nCOPY a /x/\nLABEL l=1\n"
    layer = kitchen.build(text).image.layers[-1].blob
    (kitchen.store.path / "blobs" / layer.digest.replace(":", "/")).unlink()
    assert hits(kitchen, text) == "..." and kitchen.store.verify() == {}


def test_steps_in_the_middle_are_known_as_such(kitchen: Kitchen) -> None:
    made = kitchen.build("FROM base\nENV B=1\nENV C=1\nENV D=1\n")
    unnamed = {image.digest for image in kitchen.store.images() if name_of(image) is None}
    assert build_cache.intermediate(kitchen.store) == unnamed - {made.image.descriptor.digest} and len(unnamed) == 3
    assert [step.image and step.image.id for step in made.steps][-1] == made.image.id


def test_a_fixed_time_makes_the_same_image(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen.write("a")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(TIME))
    text = "FROM base\nWORKDIR /new\nCOPY a .\nCOPY <<E /b\n1\nE\n"
    first, second = (kitchen.build(text, cache=False).image for _ in range(2))
    assert first.id == second.id and first.config.created == "2017-07-14T02:40:00Z"


# What is printed.


def test_it_is_printed_as_docker_does(kitchen: Kitchen) -> None:
    kitchen.write("a")
    made = kitchen.build("ARG X\nFROM base AS one\nCOPY   a \\\n  /x\nFROM scratch\nCOPY --from=one /x /y\n", "app:1", "app:2")
    ids = [step.image.short_id if step.image else "" for step in made.steps]
    assert kitchen.output.splitlines() == [
        *("Step 1/5 : ARG X", "Step 2/5 : FROM base AS one", f" ---> {ids[1]}", "Step 3/5 : COPY   a   /x", f" ---> {ids[2]}"),
        *("Step 4/5 : FROM scratch", " ---> ", "Step 5/5 : COPY --from=one /x /y", f" ---> {ids[4]}"),
        *(f"Successfully built {made.image.short_id}", "Successfully tagged app:1", "Successfully tagged app:2"),
    ]
    rows = repr(made).splitlines()
    assert rows[0].split() == ["step", "instruction", "cache", "seconds", "layer", "image"] and len(rows) == 7
    assert re.search(rf"COPY --from=one /x /y +\d\.\d+ +\d+ B +{made.image.short_id}", rows[-1])
    assert "<table>" in made._repr_html_()
    assert repr(kitchen.build("FROM base\nENV A=2\n")) and "hit" in repr(kitchen.build("FROM base\nENV A=2\n"))


def test_output_goes_to_a_stream_or_to_who_looks_on(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    kitchen.build("FROM base\n", output=stream)
    kitchen.build("FROM base\n", output=None)
    assert stream.getvalue() == capsys.readouterr().out != ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_there_is_a_bar(kitchen: Kitchen) -> None:
    terminal = Terminal()
    output = automatic(terminal)
    assert isinstance(output, Bar)
    kitchen.build("FROM base\nENV A=2\nENV A=3\n", output=output)
    output.text("half")
    shown = terminal.getvalue()
    assert "Step 2/3 : ENV A=2\n" in shown and re.search(r"1/3 \|.*\| \S+ ENV A=2", shown)
    assert shown.endswith("\r") and "|" not in shown.rpartition("\r")[0].rpartition("\r")[2]  # and none at the end


# The context.


def test_a_dockerfile_is_found_or_named(kitchen: Kitchen, tmp_path: Path) -> None:
    (kitchen.context / "Dockerfile").write_text("FROM base\nENV FROM=here\n")
    (tmp_path / "other").write_text("FROM base\nCOPY x /\nCOPY y /\n")
    (tmp_path / "other.dockerignore").write_text("y\n")
    kitchen.write("x", "y")
    assert "FROM=here" in build(kitchen.context, kitchen.store, output=lambda text: None).image.settings["Env"]  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"other:3: COPY: y: there is no such file; see whether \.dockerignore excludes it"):
        build(str(kitchen.context), kitchen.store, dockerfile=tmp_path / "other", output=lambda text: None)


def test_without_a_context_there_is_nothing_to_copy(kitchen: Kitchen) -> None:
    text = Dockerfile.parse("FROM base\nCOPY <<E /x\n1\nE\nCOPY x /\n")
    with pytest.raises(UsageError, match=r"Dockerfile:5: COPY: x: there is no such file$"):
        build(None, kitchen.store, dockerfile=text, output=lambda text: None)
    for wrong in ({"directory": kitchen.context / "missing"}, {"directory": None}, {"directory": kitchen.context}):
        with pytest.raises(UsageError):
            Context.read(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_context_comes_as_an_archive(mode: str, kitchen: Kitchen, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    texts = {"Dockerfile": "FROM base\nCOPY . /x\n", "a": "1", "other": "FROM base\nCOPY a /y\n", ".dockerignore": "*ocker*\nother\n"}
    for name, text in texts.items():
        (tmp_path / "packed" / name).write_text(text)
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as tar:
        tar.add(tmp_path / "packed", ".")
    for name, expected in ((None, {"x/a": "1"}), ("other", {"y": "1"})):
        stream = io.BytesIO(written.getvalue())
        context = from_stream(stream, tmp_path / f"context-{name}", name)
        assert contents(build(context, kitchen.store, output=lambda text: None).image) == expected


def test_a_dockerfile_comes_alone(kitchen: Kitchen, tmp_path: Path) -> None:
    for text in ("FROM base\nENV B=1\n", f"FROM base\n# {'x' * 600}\nENV B=1\n"):
        context = from_stream(io.BytesIO(text.encode()), tmp_path / "new")
        assert context.directory is None and not (tmp_path / "new").exists()
        assert "B=1" in build(context, kitchen.store, output=lambda text: None).image.settings["Env"]  # type: ignore[operator]
    with pytest.raises(UsageError, match="another one is named with -f"):
        from_stream(io.BytesIO(b"FROM base\n"), tmp_path / "new", "other")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.dockerignore", ".dockerignore"])
def test_a_context_that_is_sent_reads_no_file_of_this_machine(name: str, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("FROM base\n")
    for number, leads in enumerate((str(tmp_path / "own"), "../own", "/dev/zero")):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, leads
        with pytest.raises(UsageError, match="no file of this context"):
            files = {"other": ""} if name == "Dockerfile" else {"Dockerfile": "FROM base\n"}
            from_stream(io.BytesIO(archive(files, link)), tmp_path / f"new{number}")
    with pytest.raises(UsageError, match="no file of this context"):
        from_stream(io.BytesIO(archive({"Dockerfile": "FROM base\n"})), tmp_path / "new", "../own")


def test_an_archive_that_leads_out_is_no_context(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"goes up by '\.\.'"):
        from_stream(io.BytesIO(archive({"Dockerfile": "FROM base\n", "../up": "1"})), tmp_path / "new")
