"""Registries as a lab shows them, beside what a plain client has done with one."""

from pathlib import Path

import pytest

from kernel_lab.course.registries import Digests, conversation, holdings, moved
from kernel_lab.images.descriptor import OCI_MANIFEST, digest_of
from kernel_lab.images.store import Store
from tests.registries import push, push_blob, serving


def test_a_conversation_has_each_request_once_and_in_order_with_names_for_what_differs_between_runs(tmp_path: Path) -> None:
    with serving(tmp_path / "registry") as (registry, client):
        d = Digests({registry.address: "here"})
        client.head(f"team/app/blobs/{digest_of(b'layer')}")
        push_blob(client, "team/app", b"layer")
        client.get(f"team/app/blobs/{digest_of(b'layer')}")
        assert [" ".join(line.split()) for line in conversation(registry, d).splitlines()[2:]] == [
            "nobody HEAD /v2/team/app/blobs/sha256:[A] 404 Not Found",
            "nobody POST /v2/team/app/blobs/uploads/ 202 Accepted",
            "nobody PUT /v2/team/app/blobs/uploads/…?digest=sha256:[A] 201 Created a blob came",
            "nobody GET /v2/team/app/blobs/sha256:[A] 200 OK a blob went",
        ]
        assert moved(registry) == "came: nothing; went: nothing"
        assert d(f"http://{registry.address}/v2/") == "http://here/v2/"


def test_what_moved_are_bytes_of_blobs_and_manifests_and_no_questions_and_no_refusals(tmp_path: Path) -> None:
    with serving(tmp_path / "registry") as (registry, client):
        push(client, "team/app", "1.0", b"base", b"app")
        assert moved(registry) == "came: 3 blobs and 1 manifest; went: nothing"
        client.head(f"team/app/blobs/{digest_of(b'base')}")
        client.get("team/app/manifests/2.0")
        client.get("team/app/tags/list")
        assert moved(registry) == "came: nothing; went: nothing"
        client.get("team/app/manifests/1.0", headers={"Accept": OCI_MANIFEST})
        client.post("team/tool/blobs/uploads/", params={"mount": digest_of(b"base"), "from": "team/app"})
        client.post("team/tool/blobs/uploads/", params={"mount": digest_of(b"none"), "from": "team/app"})
        assert moved(registry) == "came: nothing; went: 1 manifest; lent: 1 blob"


def test_holdings_are_read_from_the_folders(tmp_path: Path) -> None:
    d = Digests()
    with serving(tmp_path / "registry") as (registry, client):
        push(client, "team/app", "1.0", b"base")
        push(client, "team/app", "latest", b"base")
        push(client, "team/tool", "1.0", b"base", b"tool")
        picture = holdings(d, registry=registry)
    app, tool = picture.rows[0]
    assert (app.title, tool.title) == ("registry: team/app", "registry: team/tool")
    assert app.lines == ["manifest [A] 1.0 latest", "configuration [B]", "layer [C]", "", "", ""]
    assert tool.lines == ["", "", "layer [C]", "manifest [D] 1.0", "configuration [E]", "layer [F]"]
    assert list(app.marked) == ["layer [C]"]


@pytest.mark.parametrize("places", [0, 1])
def test_where_there_is_nothing_to_compare_nothing_is_marked(tmp_path: Path, places: int) -> None:
    picture = holdings(Digests(), **{f"store {number}": Store(tmp_path / str(number)) for number in range(places)})
    assert all(not box.lines and not box.marked for row in picture.rows for box in row)
