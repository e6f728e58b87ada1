"""A Dockerfile: what each instruction says, what is refused and where, its stages, and which variables are seen where."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.images.descriptor import Platform
from kernel_lab.images.dockerfile import Dockerfile, triggers
from kernel_lab.images.instructions import (
    KINDS,
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Inline,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from kernel_lab.images.scope import Scope, first, predefined, proxies

SECOND = 10**9
AMD64, ARM = Platform("amd64", "linux"), Platform("arm", "linux", "v7")


def one(text: str) -> Instruction:
    """The instruction in a stage."""
    (stage,) = Dockerfile.parse(f"FROM x\n{text}\n").stages
    (instruction,) = stage.instructions
    return instruction


def said(instruction: Instruction) -> dict[str, Any]:
    """Its fields that are not as they would be by themselves."""
    return {name: value for name, value in vars(instruction).items() if name != "statement" and value not in (None, (), 0, False)}


@pytest.mark.parametrize(
    ("text", "kind", "fields"),
    [
        ("ARG a", Arg, {"defaults": (("a", None),)}),
        ("ARG a=1 b= c='d e' d", Arg, {"defaults": (("a", "1"), ("b", ""), ("c", "'d e'"), ("d", None))}),
        ("ENV a=1 b='c d' e=\"f\" g=h\\ i", Env, {"pairs": (("a", "1"), ("b", "'c d'"), ("e", '"f"'), ("g", "h\\ i"))}),
        ("ENV a b  c=d 'e'", Env, {"pairs": (("a", "b  c=d 'e'"),)}),
        ("ENV a=b=c", Env, {"pairs": (("a", "b=c"),)}),
        ('LABEL "a b"=c d.e=$f', Label, {"pairs": (('"a b"', "c"), ("d.e", "$f"))}),
        ("label a b", Label, {"pairs": (("a", "b"),)}),
        ("RUN a && b $c", Run, {"command": "a && b $c"}),
        ('RUN ["a", "$b"]', Run, {"command": ("a", "$b")}),
        ("RUN ['a']", Run, {"command": "['a']"}),
        ("RUN --mount=type=tmpfs,target=/a --mount=type=cache,target=/b --network=none --security=insecure c", Run,
         {"command": "c", "mounts": ("type=tmpfs,target=/a", "type=cache,target=/b"), "network": "none", "security": "insecure"}),
        ("RUN <<EOF\na\n\tb\nEOF", Run, {"command": "a\n\tb\n"}),
        ("RUN <<-EOF\n\ta\nEOF", Run, {"command": "a\n"}),
        ("RUN <<EOF\n#!/bin/awk -f\na\nEOF", Run, {"command": "/dev/pipes/EOF", "script": Inline("EOF", "#!/bin/awk -f\na\n")}),
        ("RUN cat <<a - 3<<-'b'\n1\na\n\t2\nb", Run, {"command": "cat <<a - 3<<-'b'\n1\na\n\t2\nb"}),
        ("RUN", Run, {"command": ""}),
        ("CMD a b", Cmd, {"command": "a b"}),
        ('CMD ["a", "b"]', Cmd, {"command": ("a", "b")}),
        ("CMD []", Cmd, {}),
        ('ENTRYPOINT ["a"]', Entrypoint, {"command": ("a",)}),
        ("entrypoint exec a", Entrypoint, {"command": "exec a"}),
        ("COPY a /b", Copy, {"sources": ("a",), "destination": "/b"}),
        ('COPY ["a b", "c", "/d e/"]', Copy, {"sources": ("a b", "c"), "destination": "/d e/"}),
        ("COPY --from=base --chown=1:$g --chmod=0644 --link a* /b/", Copy,
         {"sources": ("a*",), "destination": "/b/", "origin": "base", "chown": "1:$g", "chmod": "0644", "link": True}),
        ("COPY --parents --exclude=*.o --exclude=a . /b/", Copy, {"sources": (".",), "destination": "/b/", "parents": True, "exclude": ("*.o", "a")}),
        ("COPY --link=false a b", Copy, {"sources": ("a",), "destination": "b"}),
        ("COPY <<a b <<'c' /d/\n$x\na\n$y\nc", Copy,
         {"sources": ("b",), "destination": "/d/", "inline": (Inline("a", "$x\n", True), Inline("c", "$y\n"))}),
        ('COPY ["<<a", "/b"]', Copy, {"sources": ("<<a",), "destination": "/b"}),
        ("ADD --checksum=sha256:a https://b c.tar /d/", Add,
         {"sources": ("https://b", "c.tar"), "destination": "/d/", "checksum": "sha256:a"}),
        ("WORKDIR /a b", Workdir, {"text": "/a b"}),
        ("USER 1:2", User, {"text": "1:2"}),
        ("MAINTAINER Me <me@here>", Maintainer, {"text": "Me <me@here>"}),
        ("STOPSIGNAL SIGTERM", StopSignal, {"text": "SIGTERM"}),
        ("EXPOSE 80 53/udp $p", Expose, {"ports": ("$p", "53/udp", "80")}),
        ("VOLUME /a $b", Volume, {"paths": ("/a", "$b")}),
        ('VOLUME ["/a b"]', Volume, {"paths": ("/a b",)}),
        ("HEALTHCHECK NONE", Healthcheck, {}),
        ("HEALTHCHECK CMD a || exit 1", Healthcheck, {"command": "a || exit 1"}),
        ('HEALTHCHECK --interval=5m --timeout=3s --start-period=1m30.5s --start-interval=500ms --retries=3 cmd ["a"]', Healthcheck,
         {"command": ("a",), "interval": 300 * SECOND, "timeout": 3 * SECOND, "start_period": 181 * SECOND // 2, "start_interval": SECOND // 2,
          "retries": 3}),
        ('SHELL ["/bin/bash", "-c"]', Shell, {"shell": ("/bin/bash", "-c")}),
    ],
)  # fmt: skip
def test_an_instruction_says(text: str, kind: type[Instruction], fields: dict[str, Any]) -> None:
    instruction = one(text)
    assert type(instruction) is kind and said(instruction) == fields


def test_every_instruction_of_the_reference_is_there() -> None:
    reference = "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD RUN SHELL STOPSIGNAL USER VOLUME WORKDIR"
    assert " ".join(sorted(KINDS)) == reference


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("FETCH x", "Dockerfile:2: there is no instruction 'FETCH'"),
        ("RUNN x", "did you mean RUN?"),
        ("FROM", "Dockerfile:2: FROM: it is written FROM IMAGE or FROM IMAGE AS NAME"),
        ("FROM a b", "FROM: it is written"),
        ("FROM a AS 1b", "FROM: '1b' cannot name a stage"),
        ("FROM --platforms=a b", "FROM: there is no flag --platforms; the flags here: --platform"),
        ("ARG", "ARG: it needs a name"),
        ("ARG =a", "ARG: '=a': a name comes before ="),
        ("ENV", "ENV: it needs a name and a value, as in ENV name=value"),
        ("ENV a", "ENV: a has no value"),
        ("ENV a=1 b", "ENV: 'b' has no ="),
        ("ENV =a", "ENV: '=a': a name comes before ="),
        ("LABEL --a=b c=d", "LABEL: there is no flag --a; the flags here: none"),
        ("RUN []", "RUN: [] calls nothing"),
        ("RUN [1]", "RUN: in the JSON form all between [ and ] are strings"),
        ("RUN --mount a", "RUN: --mount needs a value, as in --mount=VALUE"),
        ("RUN <<EOF\na", "RUN: the here-document <<EOF has no end"),
        ("CMD --a", "CMD: there is no flag --a"),
        ("COPY a", "COPY: it needs a source and a destination"),
        ('COPY ["a"]', "COPY: it needs a source and a destination"),
        ("COPY a <<b\nb", "COPY: <<b: a here-document is a source"),
        ('COPY <<"a b" /c\na b', "COPY: the name of a here-document has no space in it"),
        ("COPY --from=$a b c", "COPY: --from=$a: there are no variables in --from"),
        ("COPY --from=a --from=b c d", "COPY: --from is there twice"),
        ("COPY --link=perhaps a b", "COPY: --link=perhaps: it is true or false"),
        ("COPY --keep_git_dir a b", "COPY: there is no flag --keep_git_dir"),
        ("ADD --from=a b c", "ADD: there is no flag --from; the flags here: --chown, --chmod, --link, --exclude, --checksum"),
        ("WORKDIR", "WORKDIR: it needs one argument"),
        ("EXPOSE", "EXPOSE: it needs a port"),
        ("VOLUME", "VOLUME: it needs a path"),
        ('VOLUME ["/a", " "]', "VOLUME: it needs a path"),
        ("HEALTHCHECK", "HEALTHCHECK: it is written HEALTHCHECK CMD command, or HEALTHCHECK NONE"),
        ("HEALTHCHECK NONE a", "HEALTHCHECK: it is written"),
        ("HEALTHCHECK CMD", "HEALTHCHECK: it is written"),
        ("HEALTHCHECK RUN a", "HEALTHCHECK: it is written"),
        ("HEALTHCHECK --interval=5 CMD a", "HEALTHCHECK: --interval=5: a time is a number with its unit"),
        ("HEALTHCHECK --interval=1us CMD a", "and at least 1ms"),
        ("HEALTHCHECK --timeout=-1s CMD a", "HEALTHCHECK: --timeout=-1s"),
        ("HEALTHCHECK --start-period=9999999h CMD a", "HEALTHCHECK: --start-period=9999999h"),
        ("HEALTHCHECK --retries=-1 CMD a", "HEALTHCHECK: --retries=-1: it is a number"),
        ("SHELL /bin/sh -c", "SHELL: it has the JSON form alone"),
        ("SHELL []", "SHELL: it has the JSON form alone"),
        ("ONBUILD", "ONBUILD: an instruction comes after it"),
        ("ONBUILD ONBUILD RUN a", "and ONBUILD cannot"),
        ("ONBUILD from a", "and FROM cannot"),
        ("ONBUILD MAINTAINER a", "and MAINTAINER cannot"),
        ("ONBUILD COPY a", "Dockerfile:2: ONBUILD COPY: it needs a source"),
        ("ONBUILD FETCH a", "Dockerfile:2: there is no instruction 'FETCH'"),
    ],
)
def test_what_an_instruction_does_not_allow_is_refused_with_its_place(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        Dockerfile.parse(f"FROM x\n{text}\n")
    assert str(refused.value).startswith("Dockerfile:2: ") and why in str(refused.value)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("ENV a=$x b='$x' c=\"$x y\" d=${u:-e}", {"pairs": (("a", "1"), ("b", "$x"), ("c", "1 y"), ("d", "e"))}),
        ("ENV $x=a x=2 y=$x", {"pairs": (("1", "a"), ("x", "2"), ("y", "1"))}),
        ("ENV a b  \"$x\" 'c'", {"pairs": (("a", "b  1 c"),)}),
        ("LABEL a=$x", {"pairs": (("a", "1"),)}),
        (
            "COPY --chown=$x --chmod=$x --exclude=$x $x $y",
            {"chown": "1", "chmod": "1", "exclude": ("1",), "sources": ("1",), "destination": "two words"},
        ),
        ("COPY <<$x /a\n$x '$x' \\$x\n$x", {"inline": (Inline("$x", "1 '1' $x\n"),), "sources": ()}),
        ("COPY <<'a' /a\n$x\na", {"inline": (Inline("a", "$x\n"),)}),
        ("ADD --checksum=$x a b", {"checksum": "1"}),
        ("WORKDIR /$x/$u", {"text": "/1/"}),
        ("USER ${x}:$x", {"text": "1:1"}),
        ("STOPSIGNAL $x", {"text": "1"}),
        ("STOPSIGNAL RTMIN+${x}", {"text": "RTMIN+1"}),
        ("EXPOSE $x/udp ${p} 8000-8002/TCP 127.0.0.1:90:91", {"ports": ("1/udp", "80/tcp", "81/tcp", "91/tcp", "8000/tcp", "8001/tcp", "8002/tcp")}),
        ("VOLUME /$x $y", {"paths": ("/1", "two words")}),
        # These are left as they are: a shell will see them, or nobody.
        ("RUN --mount=type=cache,target=/$x echo $x", {"command": "echo $x", "mounts": ("type=cache,target=/1",)}),
        ("CMD echo $x", {"command": "echo $x"}),
        ('ENTRYPOINT ["$x"]', {"command": ("$x",)}),
        ("HEALTHCHECK CMD $x", {"command": "$x"}),
        ('SHELL ["$x"]', {"shell": ("$x",)}),
        ("MAINTAINER $x", {"text": "$x"}),
        ("ONBUILD RUN $x", {"expression": "RUN $x"}),
    ],
)
def test_variables_are_replaced_where_docker_replaces_them(text: str, fields: dict[str, Any]) -> None:
    instruction = one(text).expanded({"x": "1", "y": "two words", "p": "80 81"})
    assert {name: getattr(instruction, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ENV $u=a", "ENV: '$u' is empty, and a name is needed"),
        ("ENV a='b", "ENV: \"'b\": a ' has no second one"),
        ("WORKDIR ${u:?set u}", "WORKDIR: '${u:?set u}': u: set u"),
        ("STOPSIGNAL SIGNOTHING", "STOPSIGNAL: 'SIGNOTHING' is no signal"),
        ("STOPSIGNAL 65", "is no signal"),
        ("STOPSIGNAL RTMIN+40", "is no signal"),
        ("EXPOSE 65536", "EXPOSE: '65536' is no port"),
        ("EXPOSE 90-80", "is no port"),
        ("EXPOSE 80/icmp", "is no port"),
        ("EXPOSE web", "is no port"),
        ("VOLUME /a $u", "VOLUME: a path is empty"),
        ("COPY <<a /b\n${x\na", "COPY: '${x\\n': unsupported modifier"),
    ],
)
def test_what_cannot_be_expanded_is_refused_with_its_place(text: str, why: str) -> None:
    instruction = one(text)
    with pytest.raises(UsageError) as refused:
        instruction.expanded({"x": "1"})
    assert str(refused.value).startswith("Dockerfile:2: ") and why in str(refused.value)


def test_the_shell_is_given_the_text_of_a_command_alone() -> None:
    shell = ("/bin/bash", "-c")
    assert [one(text).words(shell) for text in ("RUN a b", 'RUN ["a", "b"]', "CMD", "CMD []")] == [  # type: ignore[attr-defined]
        ("/bin/bash", "-c", "a b"),
        ("a", "b"),
        ("/bin/bash", "-c", ""),
        (),
    ]


@pytest.mark.parametrize(
    ("text", "test"),
    [("NONE", ("NONE",)), ("CMD a b", ("CMD-SHELL", "a b")), ('CMD ["a", "b"]', ("CMD", "a", "b"))],
)
def test_a_health_check_is_written_as_in_an_images_configuration(text: str, test: tuple[str, ...]) -> None:
    assert one(f"HEALTHCHECK {text}").test == test  # type: ignore[attr-defined]


def test_an_instruction_knows_its_lines_and_is_shown_in_one() -> None:
    (stage,) = Dockerfile.parse("FROM x\n\nrun a \\\n  b\nCOPY <<a /b\n1\na\n", "docker/Dockerfile.dev").stages
    run, copy = stage.instructions
    assert [(each.line, each.statement.last, each.keyword, each.source) for each in (run, copy)] == [
        (3, 4, "RUN", "run a   b"),
        (5, 7, "COPY", "COPY <<a /b"),
    ]
    assert str(copy.wrong("no")) == "docker/Dockerfile.dev:5: COPY: no"


def test_onbuild_keeps_the_instruction_and_its_text() -> None:
    onbuild = one("onbuild  run cat <<EOF\na\nEOF")
    assert isinstance(onbuild, Onbuild) and isinstance(onbuild.trigger, Run)
    assert (onbuild.trigger.command, onbuild.expression) == ("cat <<EOF\na\nEOF", "run cat <<EOF\na\nEOF")


def test_a_base_images_triggers_are_read_again_from_their_text() -> None:
    base = Dockerfile.parse("\nFROM base").stages[0].base
    onbuild = one("ONBUILD RUN cat <<EOF\na\nEOF")
    assert isinstance(onbuild, Onbuild)
    run, copy = triggers([onbuild.expression, "COPY . /app"], base)
    assert isinstance(run, Run) and run.command == "cat <<EOF\na\nEOF" and isinstance(copy, Copy)
    assert (run.line, copy.line) == (2, 2)


@pytest.mark.parametrize("expression", ["RUN a\nRUN b", "FROM x", "ONBUILD RUN a", "MAINTAINER a", "COPY a", "FETCH a", "", "RUN <<EOF\na"])
def test_a_trigger_that_is_none_is_refused_with_the_from_that_brings_it(expression: str) -> None:
    base = Dockerfile.parse("\nFROM base").stages[0].base
    with pytest.raises(UsageError, match=r"^Dockerfile:2: "):
        triggers([expression], base)


STAGES = """\
ARG VERSION=1
FROM --platform=$BUILDPLATFORM golang:${VERSION} AS Build
RUN a
FROM build AS test
COPY --from=0 /a /a
FROM scratch
COPY --from=build /a /a
COPY --from=BUILD /a /a
COPY --from=busybox /a /a
COPY . .
"""


def test_stages_have_numbers_names_and_instructions() -> None:
    dockerfile = Dockerfile.parse(STAGES)
    build, test, last = dockerfile.stages
    assert [(stage.number, stage.name, stage.base.image, stage.base.platform, len(stage.instructions)) for stage in (build, test, last)] == [
        (0, "build", "golang:${VERSION}", "$BUILDPLATFORM", 1),
        (1, "test", "build", None, 1),
        (2, None, "scratch", None, 4),
    ]
    assert [dockerfile.target(name) for name in (None, "build", "Test", "1", "2")] == [last, build, test, test, last]
    assert (dockerfile.before(test, "build"), dockerfile.before(build, "build"), dockerfile.before(last, "golang")) == (build, None, None)
    assert [dockerfile.origin(last, copy) for copy in last.instructions if isinstance(copy, Copy)] == [build, build, None, None]
    assert isinstance(copy := test.instructions[0], Copy) and dockerfile.origin(test, copy) == build


def test_of_two_stages_with_one_name_the_later_counts() -> None:
    dockerfile = Dockerfile.parse("FROM x AS a\nFROM a AS a\nFROM a")
    first_a, second_a, last = dockerfile.stages
    assert (dockerfile.before(second_a, "a"), dockerfile.before(last, "a"), dockerfile.target("a")) == (first_a, second_a, second_a)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ARG a", "Dockerfile: no FROM is in it"),
        ("ARG a\nRUN a\nFROM x", "Dockerfile:2: RUN: it stands before the first FROM, where only ARG can"),
        ("", "Dockerfile: no instruction is in it"),
    ],
)
def test_a_file_without_a_stage_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        Dockerfile.parse(text)
    assert str(refused.value).startswith(why)


@pytest.mark.parametrize("origin", ["later", "1", "0", "2", "99"])
def test_one_copies_from_stages_before_alone(origin: str) -> None:
    dockerfile = Dockerfile.parse(f"FROM x AS own\nCOPY --from={origin} a b\nFROM y AS later\nFROM z")
    stage = dockerfile.stages[0]
    copy = stage.instructions[0]
    assert isinstance(copy, Copy)
    with pytest.raises(UsageError, match=f"^Dockerfile:2: COPY: --from={origin}: "):
        dockerfile.origin(stage, copy)


@pytest.mark.parametrize("name", ["3", "", "none", "-1", "²"])
def test_a_target_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError, match=r"^--target=.*it has build, test, 2$"):
        Dockerfile.parse(STAGES).target(name)


def test_a_file_is_read_with_the_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile.latin"
    path.write_bytes(b"FROM x\r\n# \xe9\nRUN echo \xe9\n")
    dockerfile = Dockerfile.read(path)
    run = dockerfile.stages[0].instructions[0]
    assert (dockerfile.name, isinstance(run, Run) and run.command) == ("Dockerfile.latin", "echo \udce9")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory; say with -f where"):
        Dockerfile.read(tmp_path / "Dockerfile")


def scope(text: str, given: dict[str, str] | None = None, environment: dict[str, str] | None = None) -> Scope:
    """The scope at the end of the last stage; each that stands upon another inherits its scope."""
    dockerfile = Dockerfile.parse(text)
    outer = first(dockerfile.args, given or {}, predefined(ARM, AMD64))
    scopes: dict[str, Scope] = {}
    for stage in dockerfile.stages:
        base = dockerfile.before(stage, stage.base.image)
        inner = scopes[str(base.number)].inherited() if base else outer.stage(environment or {})
        for instruction in stage.instructions:
            if isinstance(instruction, Arg):
                inner.declare(instruction)
            elif isinstance(instruction, Env):
                inner.set(instruction)
        scopes[str(stage.number)] = inner
    return inner


@pytest.mark.parametrize(
    ("text", "given", "variables"),
    [
        ("FROM x\nARG a=1 b=$a c", {}, {"a": "1", "b": "1"}),
        ("FROM x\nARG a=1 b=$a", {"a": "2"}, {"a": "2", "b": "2"}),
        ("FROM x\nARG a='b c'", {"a": "'q'"}, {"a": "'q'"}),
        ("FROM x\nARG a", {"a": "", "other": "1"}, {"a": ""}),
        ("FROM x\nENV b=$a\nARG a=1\nENV c=$a", {}, {"b": "", "a": "1", "c": "1"}),
        # Before the first FROM: for FROM, and for who declares it again.
        ("ARG a=1\nFROM x", {}, {}),
        ("ARG a=1\nFROM x\nARG a", {}, {"a": "1"}),
        ("ARG a=1\nFROM x\nARG a=2", {}, {"a": "2"}),
        ("ARG a=1\nARG b=$a\nFROM x\nARG b", {"a": "3"}, {"b": "3"}),
        # A stage's are its own, but for the stages upon it.
        ("FROM x\nARG a=1\nFROM y", {}, {}),
        ("FROM x AS base\nARG a=1\nENV b=2\nFROM base", {}, {"a": "1", "b": "2"}),
        # The later counts, of ARG and ENV too.
        ("FROM x\nARG a=1\nENV a=2", {"a": "3"}, {"a": "2"}),
        ("FROM x\nENV a=2\nARG a=1", {"a": "3"}, {"a": "3"}),
        ("FROM x\nENV a=2\nARG a", {}, {"a": "2"}),
        ("FROM x\nARG a\nENV a=${a:-default}", {}, {"a": "default"}),
        ("FROM x\nARG a\nENV a=${a:-default}", {"a": "given"}, {"a": "given"}),
        # Within one ENV none sees what another sets.
        ("FROM x\nENV a=1\nENV a=2 b=$a\nENV c=$a", {}, {"a": "2", "b": "1", "c": "2"}),
        # Those that every build has.
        ("FROM x\nENV a=$TARGETARCH", {}, {"a": ""}),
        ("FROM x\nARG TARGETPLATFORM BUILDPLATFORM TARGETARCH TARGETVARIANT BUILDVARIANT TARGETOS TARGETSTAGE", {},
         {"TARGETPLATFORM": "linux/arm/v7", "BUILDPLATFORM": "linux/amd64", "TARGETARCH": "arm", "TARGETVARIANT": "v7", "BUILDVARIANT": "",
          "TARGETOS": "linux", "TARGETSTAGE": "default"}),
        ("FROM x\nARG TARGETARCH", {"TARGETARCH": "own"}, {"TARGETARCH": "own"}),
        ("FROM x\nENV a=$HTTP_PROXY", {"HTTP_PROXY": "http://p"}, {"a": ""}),
        # A default that nobody needs is not expanded.
        ("FROM x\nARG a=${b:?missing}", {"a": "1"}, {"a": "1"}),
        ("# escape=`\nFROM x\nARG a=`$b", {}, {"a": "$b"}),
    ],
)  # fmt: skip
def test_a_stage_sees(text: str, given: dict[str, str], variables: dict[str, str]) -> None:
    assert scope(text, given).variables == variables


def test_the_environment_of_the_base_image_is_seen() -> None:
    found = scope("FROM x\nENV PATH=/app:$PATH\nARG HOME", {"HOME": "/h"}, {"PATH": "/bin", "HOME": "/root"})
    assert (found.variables, found.arguments()) == ({"PATH": "/app:/bin", "HOME": "/h"}, {"HOME": "/h"})


def test_arguments_are_told_with_their_values_of_now() -> None:
    assert scope("FROM x\nARG b=1 a\nARG b\nENV b=2").arguments() == {"b": "2", "a": ""}


def test_a_default_that_is_needed_and_cannot_be_expanded_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^Dockerfile:2: ARG: '\$\{b:\?missing\}': b: missing"):
        scope("FROM x\nARG a=${b:?missing}")


def test_from_sees_the_arguments_before_it_and_those_of_every_build() -> None:
    dockerfile = Dockerfile.parse("ARG image=busybox tag\nFROM --platform=$BUILDPLATFORM $image:${tag:-latest}")
    base = dockerfile.stages[0].base.expanded(first(dockerfile.args, {"tag": "1"}, predefined(ARM, AMD64)).variables)
    assert (base.image, base.platform) == ("busybox:1", "linux/amd64")


@pytest.mark.parametrize("text", ["FROM $unset", "FROM --platform=$unset x"])
def test_a_from_that_comes_out_empty_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^Dockerfile:1: FROM: '\$unset' is empty: declare its variable with ARG"):
        Dockerfile.parse(text).stages[0].base.expanded({})


def test_proxies_reach_a_run_under_both_spellings() -> None:
    assert proxies({"http_proxy": "p", "NO_PROXY": "q", "other": "r"}) == {"HTTP_PROXY": "p", "http_proxy": "p", "NO_PROXY": "q", "no_proxy": "q"}
    assert predefined(AMD64, AMD64, "web")["TARGETSTAGE"] == "web"


lines = st.lists(st.tuples(st.sampled_from([*KINDS, "ONBUILD RUN", "ONBUILD COPY"]), st.text("ab=$x{}:-'\"\\[],<E\n 1/%.", max_size=12)), max_size=4)


@given(lines=lines, values=st.dictionaries(st.sampled_from("abx"), st.text("a 1$'", max_size=4)))
def test_any_file_is_read_and_expanded_or_refused_with_its_place(lines: list[tuple[str, str]], values: dict[str, str]) -> None:
    text = "FROM x\n" + "".join(f"{keyword} {rest}\n" for keyword, rest in lines)
    try:
        for stage in Dockerfile.parse(text).stages:
            stage.base.expanded(values)
            for instruction in stage.instructions:
                instruction.expanded(values)
    except UsageError as error:
        assert str(error).startswith("Dockerfile:")


@given(
    values=st.dictionaries(st.from_regex("[a-z]{1,5}", fullmatch=True), st.text(st.characters(exclude_characters="'\n\r", codec="utf-8")), min_size=1)
)
def test_quoted_values_come_out_as_they_went_in(values: dict[str, str]) -> None:
    env = one("ENV " + " ".join(f"{name}='{value}'" for name, value in values.items()))
    assert isinstance(env, Env) and dict(env.expanded({}).pairs) == values


@given(words=st.lists(st.text(), min_size=1))
def test_the_json_form_gives_the_words_back(words: list[str]) -> None:
    run = one(f"RUN {json.dumps(words)}")
    assert isinstance(run, Run) and run.command == tuple(words)
