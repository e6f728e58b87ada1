"""A Dockerfile's lines: which make one statement, which are comments, and where here-documents end; and BuildKit's own parser's answers."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.images.statements import Statement, read

PARTS = (
    *("FROM x", "RUN ", "COPY ", "ADD ", "ENV ", "ARG ", "ONBUILD ", "CMD ", "VOLUME ", "EXPOSE ", "EOF", "# escape=`\n", "#c", "a", "b=c", "é"),
    *("\n", "\n", "\n", "\\\n", "\\ \n", "`\n", "\r\n", " ", "  ", "\t", "\x0b", "\\", "\\\\", "`", "'", '"', "$x", "${x:-y}", "${!x}", "--", "/d"),
    *("<<EOF", "<<-EOF", "<<'EOF'", '<<"E"OF', "3<<EOF", "<<", "EOF\n", "EOF\n", "\tEOF\n", "[", '"a"', "]", '["a", "b"]'),
)
files = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)

# In a process of its own: the Go runtime in it has threads, and other tests here make namespaces, which a process with threads cannot.
PEER = """
import dockerfile, json, sys
for line in sys.stdin:
    try:
        found = dockerfile.parse_string(json.loads(line))
        print(json.dumps([[c.cmd, c.start_line, c.end_line, c.flags, c.value, [[h.name, h.content] for h in c.heredocs]] for c in found]))
    except dockerfile.GoParseError as error:
        print(json.dumps(str(error)))
"""


def statements(text: str) -> tuple[Statement, ...]:
    return read(text, "Dockerfile")[1]


def sources(text: str) -> list[tuple[int, int, str]]:
    return [(statement.line, statement.last, statement.source) for statement in statements(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FROM x", [(1, 1, "FROM x")]),
        ("\n\n  FROM x  \nRUN a\n", [(3, 3, "FROM x"), (4, 4, "RUN a")]),
        ("\ufeffFROM x\n", [(1, 1, "FROM x")]),
        ("FROM x\r\nRUN a \\\r\n b\r\n", [(1, 1, "FROM x"), (2, 3, "RUN a  b")]),
        ("RUN a \\\n  b\\\nc", [(1, 3, "RUN a   bc")]),
        ("RUN a \\ \t\n b", [(1, 2, "RUN a  b")]),
        ("RUN a \\\\\nRUN b", [(1, 1, "RUN a \\\\"), (2, 2, "RUN b")]),
        ("RUN a\\\n\\\nb", [(1, 3, "RUN ab")]),
        ("RUN a \\", [(1, 1, "RUN a")]),
        ("\\\nRUN a", [(1, 2, "RUN a")]),
        # Comments and empty lines between continued ones.
        ("RUN a \\\n# comment \\\n  # another\n\n   \n b\nRUN c", [(1, 6, "RUN a  b"), (7, 7, "RUN c")]),
        ("# comment \\\nFROM x", [(2, 2, "FROM x")]),
        ("  # comment\nFROM x # none", [(2, 2, "FROM x # none")]),
        ("RUN a \\\n# the end", [(1, 2, "RUN a")]),
        # Here-documents.
        ("RUN <<EOF\na\nEOF\nRUN b", [(1, 3, "RUN <<EOF"), (4, 4, "RUN b")]),
        ("RUN <<EOF\n# no comment \\\n\nEOF\nRUN b", [(1, 4, "RUN <<EOF"), (5, 5, "RUN b")]),
        ("RUN <<E\\\nOF\na\nEOF", [(1, 4, "RUN <<EOF")]),
        ('RUN ["<<EOF"]\nRUN b', [(1, 1, 'RUN ["<<EOF"]'), (2, 2, "RUN b")]),
        ("CMD <<EOF\nRUN b", [(1, 1, "CMD <<EOF"), (2, 2, "RUN b")]),
        ("RUN a<<EOF\nRUN b", [(1, 1, "RUN a<<EOF"), (2, 2, "RUN b")]),
        ("RUN '<<EOF'\nRUN b", [(1, 1, "RUN '<<EOF'"), (2, 2, "RUN b")]),
        ("RUN a <<<EOF\nRUN b", [(1, 1, "RUN a <<<EOF"), (2, 2, "RUN b")]),
        ("RUN a << EOF\nRUN b", [(1, 1, "RUN a << EOF"), (2, 2, "RUN b")]),
    ],
)
def test_lines_become_statements(text: str, found: list[tuple[int, int, str]]) -> None:
    assert sources(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("RUN <<EOF\na\n b\nEOF", [("EOF", "a\n b\n", True, False)]),
        ("RUN <<EOF\nEOF", [("EOF", "", True, False)]),
        ("RUN <<'EOF'\n$a\nEOF", [("EOF", "$a\n", False, False)]),
        ('RUN <<"EOF"\n$a\nEOF', [("EOF", "$a\n", False, False)]),
        ('RUN <<E"O"F\n$a\nEOF', [("EOF", "$a\n", False, False)]),
        ("RUN <<-EOF\n\ta\n\tEOF", [("EOF", "\ta\n", True, True)]),
        ("RUN <<EOF\n\tEOF\n EOF\nEOF ", None),
        ("RUN <<EOF\na\r\nEOF\r\n", [("EOF", "a\r\n", True, False)]),
        ("RUN cat <<a 3<<b > c\n1\na\n2\nb", [("a", "1\n", True, False), ("b", "2\n", True, False)]),
        ("COPY <<a <<-'b' c /d/\n1\na\n2\n\tb", [("a", "1\n", True, False), ("b", "2\n", False, True)]),
        ("ADD --chown=1 <<a /d/\n1\na", [("a", "1\n", True, False)]),
        ("ONBUILD RUN <<a\n1\na", [("a", "1\n", True, False)]),
        ("RUN <<$a\n1\n$a", [("$a", "1\n", True, False)]),
        ("RUN (cat <<a)\n1\na)", [("a)", "1\n", True, False)]),
        ("RUN <<EOF\na", None),
    ],
)
def test_a_here_document_ends_at_its_name(text: str, found: list[tuple[str, str, bool, bool]] | None) -> None:
    if found is None:
        with pytest.raises(UsageError, match=r"^Dockerfile:1: RUN: the here-document <<EOF has no end"):
            statements(text)
    else:
        (statement,) = statements(text)
        assert [(doc.name, doc.content, doc.expands, doc.strips) for doc in statement.documents] == found


def test_tabs_go_from_the_lines_of_a_stripped_document_alone() -> None:
    stripped, whole = statements("RUN <<-a <<b\n\t\tone\n two\tthree\n\ta\n\tfour\nb")[0].documents
    assert (stripped.text, whole.text) == ("one\n two\tthree\n", "\tfour\n")


@pytest.mark.parametrize(
    ("text", "directives"),
    [
        ("FROM x", {}),
        ("# syntax=docker/dockerfile:1\n# escape=`\nFROM x", {"syntax": "docker/dockerfile:1", "escape": "`"}),
        ("#check=skip=all;error=true\nFROM x", {"check": "skip=all;error=true"}),
        ("#  ESCAPE  =  `  \r\nFROM x", {"escape": "`"}),
        ("\ufeff# escape=`\nFROM x", {"escape": "`"}),
        ("\n# escape=`\nFROM x", {}),
        ("# a comment\n# escape=`\nFROM x", {}),
        ("# unknown=1\n# escape=`\nFROM x", {}),
        ("FROM x\n# escape=`", {}),
        ("# escape=\nFROM x", {}),
    ],
)
def test_parser_directives_come_before_all_else(text: str, directives: dict[str, str]) -> None:
    assert read(text, "Dockerfile")[0] == directives


def test_the_escape_directive_changes_continuation_and_escapes() -> None:
    first, second = statements("# escape=`\nRUN a `\n b\nCOPY --chown=a` b C:\\ d\\")
    assert (first.source, second.flags, second.rest, second.escape) == ("RUN a  b", ("--chown=a b",), "C:\\ d\\", "`")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Dockerfile: no instruction is in it"),
        ("# only a comment\n", "Dockerfile: no instruction is in it"),
        ("# escape=x\nFROM x", "Dockerfile:1: escape=x: the escape character is \\ or `"),
        ("# escape=`\n# escape=`\nFROM x", "Dockerfile:2: the parser directive escape is there twice"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(text, "Dockerfile")
    assert str(refused.value).startswith(why)


@pytest.mark.parametrize(
    ("text", "flags", "rest"),
    [
        ("COPY a b", (), "a b"),
        ("COPY --link  --from=x a b", ("--link", "--from=x"), "a b"),
        ("COPY --chown='a b' --x=\"c d\" e", ("--chown=a b", "--x=c d"), "e"),
        ("COPY --x=a\\ b c", ("--x=a b",), "c"),
        ("RUN -- --a", (), "--a"),
        ("RUN - --a", (), "- --a"),
        ("RUN --mount=a --", ("--mount=a",), ""),
        ("RUN a --b", (), "a --b"),
    ],
)
def test_flags_come_before_all_else(text: str, flags: tuple[str, ...], rest: str) -> None:
    (statement,) = statements(text)
    assert (statement.flags, statement.rest) == (flags, rest)


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ('["a", "b c"]', ("a", "b c")),
        ('[ "a\\u00e9\\n" ]', ("aé\n",)),
        ("[]", ()),
        ('["a",]', None),
        ("['a']", None),
        ('["a"] b', None),
        ("[ -f a ] && b", None),
        ("a", None),
        ("[" * 100_000, None),
        ('["\\ud800"]', ("\ufffd",)),
        ("[NaN]", None),
    ],
)
def test_the_json_form_is_json_or_it_is_text(rest: str, words: tuple[str, ...] | None) -> None:
    assert statements(f"RUN {rest}")[0].array() == words


@pytest.mark.parametrize("rest", ["[1]", '["a", null]', '[["a"]]'])
def test_json_of_anything_but_strings_is_refused(rest: str) -> None:
    with pytest.raises(UsageError, match=r"^Dockerfile:1: RUN: in the JSON form all"):
        statements(f"RUN {rest}")[0].array()


@given(text=files | st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = statements(text)
    except UsageError as error:
        assert str(error).startswith("Dockerfile")
    else:
        assert all(statement.line <= statement.last for statement in found)


@given(
    parts=st.lists(
        st.text("ab\\`# \t", min_size=1, max_size=6).filter(lambda part: part.strip() and part.strip()[0] not in "#\\`"), min_size=1, max_size=5
    )
)
def test_continued_lines_are_one_text(parts: list[str]) -> None:
    whole = [part.rstrip("\\`") + "x" for part in parts]
    assert statements("RUN " + "\\\n# a comment\n\n".join(whole))[0].source == ("RUN " + "".join(whole)).strip()


@pytest.fixture(scope="module")
def peer() -> Iterator[Callable[[str], Any]]:
    """What BuildKit's parser says of a text: a list of statements, or an error's message."""
    with subprocess.Popen([sys.executable, "-u", "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin and process.stdout

        def ask(text: str) -> Any:
            print(json.dumps(text), file=process.stdin)
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


def judged(statement: Statement) -> list[Any]:
    """The statement as the peer has it; its value only where the peer has not read more into it."""
    array = statement.array()
    match statement.keyword:
        case "RUN" | "CMD":
            value = array if array is not None else (statement.rest,) if statement.rest else ()
        case "COPY" | "ADD" | "VOLUME":
            value = statement.words() if array is None else array
        case "FROM" | "EXPOSE":
            value = statement.words()
        case "ARG":
            value = tuple(statement.quoted_words())
        case _:
            value = ("…",)
    documents = [[document.name, document.content] for document in statement.documents]
    return [statement.keyword, statement.line, statement.last, list(statement.flags), list(value), documents]


def comparable(found: tuple[Statement, ...], text: str) -> bool:
    """The peer is of 2024: what BuildKit has mended since is left out (letters in flags, the escape in them, what follows the JSON form)."""
    flags = any(statement.flags for statement in found)
    after_json = any(statement.rest.startswith("[") and not statement.rest.endswith("]") for statement in found)
    return not after_json and not (flags and ("é" in text or "escape" in text)) and all(statement.keyword for statement in found)


@pytest.mark.needs("module:dockerfile")
@settings(max_examples=1000)
@given(text=files)
def test_buildkits_own_parser_reads_the_same(text: str, peer: Callable[[str], Any]) -> None:
    answer = peer(text)
    try:
        found = statements(text)
        mine = [judged(statement) for statement in found]
    except UsageError as error:
        assert isinstance(answer, str), (answer, error)
        return
    if isinstance(answer, str):
        # The peer judges the words of ENV and LABEL here already.
        assert "must have two arguments" in answer or "can't find =" in answer
    elif comparable(found, text):
        theirs = [[each[0].upper(), *each[1:4], each[4] if own[4] != ["…"] else own[4], each[5]] for each, own in zip(answer, mine, strict=True)]
        assert mine == theirs
