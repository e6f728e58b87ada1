"""Uploads to a registry of ours, in any order of steps: as many chunks as anybody likes, wrong ones among them, and a server that starts anew."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from registries import code, files, serving

from kernel_lab.images.descriptor import digest_of

CONTENT = st.binary(max_size=40)
ALGORITHMS = st.sampled_from(["sha256", "sha512"])
NAME = "lab/app"


@settings(max_examples=30, stateful_step_count=25)
class Model(RuleBasedStateMachine):
    """A registry beside a dictionary of blobs, and the bytes of an upload."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.served = ExitStack()
        self.place: httpx.URL | None = None
        self.come = b""
        self.blobs: dict[str, bytes] = {}

    @initialize()
    def start(self) -> None:
        self.registry, self.client = self.served.enter_context(serving(Path(self.folder.name, "registry")))

    def teardown(self) -> None:
        self.served.close()
        self.folder.cleanup()

    @rule()
    def start_anew(self) -> None:
        self.served.close()
        self.start()
        self.place = self.place and self.client.base_url.join(self.place.path)

    @precondition(lambda self: self.place is None)
    @rule()
    def begin(self) -> None:
        self.place = self.client.base_url.join(self.client.post(f"{NAME}/blobs/uploads/").headers["Location"])
        self.come = b""

    @precondition(lambda self: self.place)
    @rule(content=CONTENT, streamed=st.booleans(), told=st.booleans())
    def send(self, content: bytes, streamed: bool, told: bool) -> None:
        assert self.place
        headers = {"Content-Range": f"{len(self.come)}-{len(self.come) + len(content) - 1}"} if told and content else {}
        body = iter([content]) if streamed else content
        assert self.client.patch(self.place, content=body, headers=headers).status_code == 202
        self.come += content

    @precondition(lambda self: self.place)
    @rule(content=st.binary(min_size=1, max_size=40), first=st.integers(0, 100), more=st.integers(-3, 3), streamed=st.booleans())
    def send_wrongly(self, content: bytes, first: int, more: int, streamed: bool) -> None:
        assert self.place
        if first == len(self.come) and more == 0:
            return
        headers = {"Content-Range": f"{first}-{max(first + len(content) - 1 + more, 0)}"}
        body = iter([content]) if streamed else content
        assert self.client.patch(self.place, content=body, headers=headers).status_code in (400, 416)

    @precondition(lambda self: self.place)
    @rule(content=CONTENT, algorithm=ALGORITHMS)
    def finish(self, content: bytes, algorithm: str) -> None:
        assert self.place
        digest = digest_of(self.come + content, algorithm)
        assert self.client.put(self.place, params={"digest": digest}, content=content).status_code == 201
        self.blobs[digest] = self.come + content
        self.place = None

    @precondition(lambda self: self.place)
    @rule(content=CONTENT, algorithm=ALGORITHMS)
    def finish_wrongly(self, content: bytes, algorithm: str) -> None:
        assert self.place
        answer = self.client.put(self.place, params={"digest": digest_of(self.come + content + b"x", algorithm)}, content=content)
        assert code(answer) == (400, "DIGEST_INVALID")
        self.place = None

    @precondition(lambda self: self.place)
    @rule()
    def give_up(self) -> None:
        assert self.place and self.client.delete(self.place).status_code == 204
        self.place = None

    @rule(content=CONTENT, algorithm=ALGORITHMS)
    def send_whole(self, content: bytes, algorithm: str) -> None:
        digest = digest_of(content, algorithm)
        assert self.client.post(f"{NAME}/blobs/uploads/", params={"digest": digest}, content=content).status_code == 201
        self.blobs[digest] = content

    @invariant()
    def all_is_there(self) -> None:
        if not hasattr(self, "client"):
            return
        for digest, content in self.blobs.items():
            assert self.client.get(f"{NAME}/blobs/{digest}").content == content
        if self.place:
            assert self.client.get(self.place).headers["Range"] == f"0-{max(len(self.come) - 1, 0)}"
        names = [file for file in files(self.registry.path) if "/uploads/" in file]
        assert len(names) == (1 if self.place else 0)


TestModel = pytest.mark.slow(Model.TestCase)
