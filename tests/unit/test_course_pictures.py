"""Pictures: well-formed, the same for the same state, nothing outside the card."""

import xml.etree.ElementTree as xml
from itertools import pairwise

import pytest

from kernel_lab.course.pictures import Box, Link, Picture, boxes, rows, side_by_side
from kernel_lab.kernel.errors import UsageError

SVG = "{http://www.w3.org/2000/svg}"


def topology() -> Picture:
    links = [Link("host", "db", "veth & co"), Link("web <1>", "db")]
    return rows([Box("host", ["eth0"])], [Box("web <1>", ["10.0.0.2", "lo"]), Box("db")], links=links)


def drawn(picture: Picture) -> xml.Element:
    return xml.fromstring(picture._repr_svg_())


@pytest.mark.parametrize("picture", [topology(), boxes(), boxes(Box("a")), rows([], [Box("a")]), side_by_side(), side_by_side(host={}, box={"a": 1})])
def test_every_picture_is_well_formed_and_inside_its_card(picture: Picture) -> None:
    svg = drawn(picture)
    width, height = int(svg.attrib["width"]), int(svg.attrib["height"])
    for rect in svg.iter(f"{SVG}rect"):
        x, y = int(rect.get("x", 0)), int(rect.get("y", 0))
        assert x >= 0 and y >= 0 and x + int(rect.attrib["width"]) <= width and y + int(rect.attrib["height"]) <= height


def test_the_same_state_gives_the_same_picture() -> None:
    assert topology()._repr_svg_() == topology()._repr_svg_()


def test_texts_and_links_are_there_as_they_are() -> None:
    svg = drawn(topology())
    assert [text.text for text in svg.iter(f"{SVG}text")] == ["host", "eth0", "web <1>", "10.0.0.2", "lo", "db", "veth & co"]
    assert len(list(svg.iter(f"{SVG}line"))) == 2
    assert repr(topology()) == "[host: eth0]\n[web <1>: 10.0.0.2, lo] | [db]\nhost -- db (veth & co)\nweb <1> -- db"


def test_links_join_the_edges_of_their_boxes() -> None:
    svg = drawn(boxes(Box("a"), Box("b"), links=[Link("b", "a")]))
    (line,) = svg.iter(f"{SVG}line")
    _card, a, _, b, _ = svg.iter(f"{SVG}rect")
    assert int(line.attrib["x1"]) == int(a.attrib["x"]) + int(a.attrib["width"])
    assert line.attrib["x2"] == b.attrib["x"]


def test_boxes_do_not_overlap() -> None:
    svg = drawn(boxes(Box("a", ["x" * 40]), Box("b"), Box("c"), links=[Link("a", "b", "a long label between the two")]))
    frames = [rect for rect in svg.iter(f"{SVG}rect") if rect.get("stroke")]
    edges = [(int(frame.attrib["x"]), int(frame.attrib["x"]) + int(frame.attrib["width"])) for frame in frames]
    assert all(end < start for (_, end), (start, _) in pairwise(edges))


def test_what_differs_from_the_first_view_is_marked() -> None:
    svg = drawn(side_by_side(host={"uts": "A", "net": "A"}, box={"uts": "B", "net": "A"}))
    assert [text.text for text in svg.iter(f"{SVG}text") if text.get("font-weight") and not text.get("text-anchor")] == ["uts  B"]


def test_a_link_to_nowhere_and_a_title_twice_are_refused() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        boxes(Box("a"), links=[Link("a", "nowhere")])
    with pytest.raises(UsageError, match="title of their own"):
        boxes(Box("a"), Box("a"))
