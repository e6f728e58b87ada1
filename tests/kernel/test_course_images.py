"""Builds as a lab shows them: letters for ids, a step in a line, what is run as whom, and what stays in an image."""

from pathlib import Path

import pytest

from kernel_lab import UsageError
from kernel_lab.course.images import Digests, run, stacks, traces, write
from kernel_lab.images import base
from kernel_lab.images.build import Build, BuildError, build
from kernel_lab.images.dockerfile import Dockerfile
from kernel_lab.images.store import Store

pytestmark = pytest.mark.needs("busybox", "userns")
WORD = "swordfish"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    kept = Store(tmp_path / "images")
    base.make("busybox", kept)
    write(tmp_path / "context", {"inner/key": f"{WORD}\n"})
    return kept


def built(store: Store, *lines: str, **more: object) -> Build:
    text = "\n".join(("FROM busybox", *lines))
    return build(store.path.parent / "context", store, dockerfile=Dockerfile.parse(text), output=lambda text: None, **more)  # type: ignore[arg-type]


def test_the_beginning_of_a_digest_has_its_letter_and_a_longer_number_none_of_its_own() -> None:
    d = Digests()
    assert d(f"sha256:{'ab' * 32} is {'ab' * 6} and not {'cd' * 6}, {'cd' * 32} or {'cd' * 7}") == f"sha256:[A] is [A] and not [B], [B] or {'cd' * 7}"


def test_steps_say_what_was_a_hit_and_what_makes_a_layer(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    built(store, "WORKDIR /app", "USER nobody")
    Digests().steps(built(store, "WORKDIR /app", "USER daemon"))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines == ["1 FROM busybox [A]", "2 WORKDIR /app hit a layer [B]", "3 USER daemon [C]"]


@pytest.mark.needs("newuidmap")
def test_an_image_is_run_as_its_user_in_its_directory(store: Store) -> None:
    image = built(store, "WORKDIR /app", "ENV WORD=said", "USER daemon", 'CMD ["sh", "-c", "id -un; pwd; echo $WORD"]').image
    assert run(image).stdout == "daemon\n/app\nsaid\n"
    assert run(image, "echo", "other words").stdout == "other words\n"


def test_traces_are_found_below_whiteouts_and_in_the_history(store: Store) -> None:
    image = built(store, "COPY inner/key /tmp/", "RUN rm /tmp/key", "ARG KEY", "RUN true", args={"KEY": WORD}).image
    assert traces(image, WORD) == ["layer 2", "history"]
    assert traces(image, "herring") == []


def test_a_picture_names_what_made_a_layer_without_digests(store: Store) -> None:
    image = built(store, "COPY inner/key /tmp/", "RUN echo 1 > /new").image
    store.tag(image.descriptor, "app")
    assert repr(stacks(store, "app")).splitlines()[:3] == ["[app:latest]", "[layer 3: echo 1 > /new]", "[layer 2: COPY file in /tmp/]"]


def test_what_fails_is_shown_with_letters_and_other_errors_too(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with Digests().fails(UsageError, BuildError):
        built(store, f"RUN echo {'ab' * 32} && false")
    assert capsys.readouterr().out.startswith("BuildError: Dockerfile:2: RUN: The command '/bin/sh -c echo [A] && false' returned")
