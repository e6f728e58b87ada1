"""Variables in a Dockerfile: each form, quotes and escapes, how words are split, and a shell's own answers where it knows the same forms."""

import itertools
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.images.expansion import SPACE, Quotes, Rules, expand, expand_document, expand_words

VARIABLES = {"x": "value", "empty": "", "two": "a b", "path": "/usr/local/lib.tar.gz", "_a1": "under", "é": "accent", "quote": "'\"", "dollar": "$x"}

texts = st.text("$}{x:-+?#%/ab*\\`'\" \n_1", max_size=25) | st.text(max_size=15)
escapes = st.sampled_from(["\\", "`"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$x", "value"),
        ("${x}", "value"),
        ("a${x}b", "avalueb"),
        ("$xy", ""),
        ("$x.y", "value.y"),
        ("$x-$x", "value-value"),
        ("$_a1", "under"),
        ("$é", "accent"),
        ("$unset", ""),
        ("${unset}", ""),
        ("$dollar", "$x"),
        # What is no name.
        ("$", "$"),
        ("a$", "a$"),
        ("$ x", "$ x"),
        ("$.", "$."),
        ("$(x)", "$(x)"),
        ("$12x", "x"),
        ("$$", ""),
        ("$?x", "x"),
        ("$@$*$#$-$!", ""),
        # Defaults and alternatives.
        ("${x:-other}", "value"),
        ("${empty:-other}", "other"),
        ("${empty-other}", ""),
        ("${unset:-other}", "other"),
        ("${unset-other}", "other"),
        ("${unset:-}", ""),
        ("${x:+other}", "other"),
        ("${empty:+other}", ""),
        ("${empty+other}", "other"),
        ("${unset:+other}", ""),
        ("${unset+other}", ""),
        ("${unset:-$x}", "value"),
        ("${unset:-${empty:-${x}}}", "value"),
        ("${unset:-a b}", "a b"),
        ("${unset:-'}'}", "}"),
        ('${unset:-"$x"}', "value"),
        ("${unset:-\\}}", "}"),
        ("${x:?why}", "value"),
        ("${x?why}", "value"),
        ("${empty?why}", ""),
        # Patterns.
        ("${path#*/}", "usr/local/lib.tar.gz"),
        ("${path##*/}", "lib.tar.gz"),
        ("${path%.*}", "/usr/local/lib.tar"),
        ("${path%%.*}", "/usr/local/lib"),
        ("${path#/usr}", "/local/lib.tar.gz"),
        ("${path#usr}", "/usr/local/lib.tar.gz"),
        ("${path%.g?}", "/usr/local/lib.tar"),
        ("${path#$unset}", "/usr/local/lib.tar.gz"),
        ("${unset#a}", ""),
        ("${x/al/AL}", "vALue"),
        ("${path/l/L}", "/usr/Local/lib.tar.gz"),
        ("${path//l/L}", "/usr/LocaL/Lib.tar.gz"),
        ("${path/\\/usr/}", "/local/lib.tar.gz"),
        ("${path//\\//-}", "-usr-local-lib.tar.gz"),
        ("${path/*/all}", "all"),
        ("${path//*/all}", "all"),
        ("${x/v/$two}", "a balue"),
        ("${x/v/\\\\1}", "\\\\1alue"),
        ("${x/nothing/}", "value"),
        ("${x//}", None),
        # Quotes and escapes.
        ("'$x'", "$x"),
        ('"$x"', "value"),
        ("\"'$x'\"", "'value'"),
        ("'a\\'", "a\\"),
        ('"a\\"b"', 'a"b'),
        ('"\\$x"', "$x"),
        ('"\\a"', "\\a"),
        ('"\\\\"', "\\"),
        ("\\$x", "$x"),
        ("\\a", "a"),
        ("\\\\", "\\"),
        ("a\\", "a"),
        ("\\'$x", "'value"),
        ("a'b'\"c\"d", "abcd"),
        ("$quote", "'\""),
        ("''", ""),
    ],
)
def test_a_text_is_expanded_as_docker_does(written: str, meant: str | None) -> None:
    if meant is None:
        with pytest.raises(UsageError):
            expand(written, VARIABLES)
    else:
        assert expand(written, VARIABLES) == meant


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("${x", "there is no } for ${"),
        ("${", "there is no } for ${"),
        ("${x:-a", "there is no } for ${"),
        ("${x:", "there is no } for ${"),
        ("${x/a", "there is no / for ${"),
        ("${x/a/b", "there is no } for ${"),
        ("${}", "bad substitution"),
        ("${{x}}", "bad substitution"),
        ("${:-x}", "bad substitution"),
        ("${x!y}", "unsupported modifier '!' after 'x'"),
        ("${x:1}", "unsupported modifier ':1' after 'x'"),
        ("${x^^}", "unsupported modifier '^'"),
        ("${.}", "unsupported modifier '.' after ''"),
        ("'a", "a ' has no second one"),
        ('"a', 'a " has no second one'),
        ('"${x', "there is no } for ${"),
        ("${unset:?say so}", "unset: say so"),
        ("${unset?}", "unset: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${x#\\a}", "a backslash in a pattern stands before one of"),
        ("${x:-" * 101 + "}" * 101, "more than 100 of ${"),
    ],
)
def test_what_cannot_be_expanded_is_refused_with_the_text(written: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        expand(written, VARIABLES)
    assert str(refused.value).startswith(repr(written[:60])[:-1]) and why in str(refused.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("`$x", "$x"), ("\\$x", "\\value"), ('"`""', '"'), ("a`", "a"), ('"\\"', "\\"), ("C:\\$x\\y", "C:\\value\\y")],
)
def test_a_backtick_escapes_where_the_directive_says_so(written: str, meant: str) -> None:
    assert expand(written, VARIABLES, Rules("`")) == meant


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", []),
        (" a  b\t", ["a", "b"]),
        ("$two", ["a", "b"]),
        ("x${two}y", ["xa", "by"]),
        ('"$two"', ["a b"]),
        ("'a b' c", ["a b", "c"]),
        ("a\\ b", ["a b"]),
        ("${unset:-c  d}", ["c", "d"]),
        ("$unset", []),
        ('""', []),
        ("a\u00a0b\x1cc", ["a", "b\x1cc"]),
    ],
)
def test_words_are_split_after_expansion_unless_they_are_quoted(written: str, words: list[str]) -> None:
    assert expand_words(written, VARIABLES) == words


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("'$x' \"$x\"\n", "'value' \"value\"\n"),
        ("\\$x\n", "$x\n"),
        ("\\\n", "\n"),
        ("\\\\\n", "\\\n"),
        ("it's ${unset:-fine}\n", "it's fine\n"),
    ],
)
def test_quotes_are_characters_in_a_here_document(written: str, meant: str) -> None:
    assert expand_document(written, VARIABLES) == meant


@given(text=texts, escape=escapes)
def test_any_text_is_expanded_or_refused(text: str, escape: str) -> None:
    try:
        expand(text, VARIABLES, Rules(escape))
        expand_words(text, VARIABLES, Rules(escape, Quotes.KEPT, raw=True, unset_stays=True))
        expand_document(text, VARIABLES)
    except UsageError:
        pass


@given(text=st.text(), escape=escapes)
def test_what_is_escaped_throughout_means_itself(text: str, escape: str) -> None:
    assert expand("".join(escape + char for char in text), VARIABLES, Rules(escape)) == text


@given(text=st.text().filter(lambda text: "'" not in text))
def test_what_stands_in_single_quotes_means_itself(text: str) -> None:
    assert expand(f"'{text}'", VARIABLES) == text


@given(value=st.text(), around=st.text("ab ", max_size=3))
def test_a_value_is_not_expanded_again(value: str, around: str) -> None:
    assert expand(f"{around}${{x}}{around}", {"x": value}) == around + value + around


@given(words=st.lists(st.text(min_size=1).filter(lambda word: "'" not in word), max_size=4), gap=st.text(SPACE, min_size=1, max_size=2))
def test_quoted_words_come_out_as_they_went_in(words: list[str], gap: str) -> None:
    assert expand_words(gap.join(f"'{word}'" for word in words), {}) == words


@pytest.mark.needs("bash")
@pytest.mark.parametrize("operator", ["#P", "##P", "%P", "%%P", "/P/-", "//P/-", ":-P", "-P", ":+P", "+P"])
def test_a_shell_says_the_same_of_the_forms_it_has(operator: str) -> None:
    values = ["", "a", "ab", "aab", "abab", "baab", "a.b"]
    patterns = ["a", "b", "*", "?", "a*", "*b", "a?", "??", "a*b", "*a*", ".", "ba"]
    cases = [(value, f"${{x{operator.replace('P', pattern)}}}") for value, pattern in itertools.product(values, patterns)]
    script = "".join(f"x='{value}'; printf '%s\\n' \"{form}\"\n" for value, form in cases)
    answers = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    assert [(*case, expand(case[1], {"x": case[0]})) for case in cases] == [(*case, answer) for case, answer in zip(cases, answers, strict=True)]
