from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.core.link import Link
from orchestrator.egress.fake_names import MAX_NAMES, FakeNames
from orchestrator.egress.links import LinkRefused, Links
from tests.unit.egress.conftest import TAP, make_link, make_policy

OTHER = "ic" + "0" * 13


def write(folder: Path, link: Link, name: str = "") -> None:
    (folder / f"{name or link.tap}.json").write_bytes(msgspec.json.encode(link))


def test_a_link_is_in_force_once_it_is_put(tmp_path: Path) -> None:
    links = Links(tmp_path)
    write(tmp_path, make_link(make_policy("a.example")))
    state = links.put(links.read(TAP), 0.0)
    assert links.of_guest("10.201.0.3") is state
    assert links.of_tap(TAP) is state
    assert links.of_guest("10.201.0.5") is None
    write(tmp_path, make_link(make_policy("b.example"), generation=2))
    assert links.put(links.read(TAP), 0.0) is state
    assert state.link.generation == 2
    assert links.remove(TAP) is state
    assert links.of_guest("10.201.0.3") is None
    assert links.remove(TAP) is None


def test_another_address_is_another_link(tmp_path: Path) -> None:
    links = Links(tmp_path)
    first = links.put(make_link(make_policy()), 0.0)
    second = links.put(make_link(make_policy(), guest_ip="10.201.0.9"), 0.0)
    assert second is not first
    assert links.of_guest("10.201.0.3") is None
    assert len(links) == 1


@pytest.mark.parametrize(
    ("content", "tap"),
    [
        (None, TAP),
        (b"", TAP),
        (b"{}", TAP),
        (b"\xff\xfe", TAP),
        (msgspec.json.encode(make_link(make_policy(), guest_ip="10.201.0.300")), TAP),
        (msgspec.json.encode(make_link(make_policy(), tap=OTHER)), TAP),
        (msgspec.json.encode(make_link(make_policy())).replace(b'"bound":true', b'"bound":true,"x":1'), TAP),
        (msgspec.json.encode(make_link(make_policy())), "../../etc/passwd"),
        (msgspec.json.encode(make_link(make_policy())), "eth0"),
    ],
)
def test_a_file_that_is_not_right_is_refused(tmp_path: Path, content: bytes | None, tap: str) -> None:
    if content is not None:
        (tmp_path / f"{TAP}.json").write_bytes(content)
    with pytest.raises(LinkRefused):
        Links(tmp_path).read(tap)


def test_two_links_never_share_an_address(tmp_path: Path) -> None:
    links = Links(tmp_path)
    links.put(make_link(make_policy()), 0.0)
    write(tmp_path, make_link(make_policy(), tap=OTHER))
    with pytest.raises(LinkRefused, match=TAP):
        links.read(OTHER)


def test_loading_leaves_out_what_is_refused(tmp_path: Path) -> None:
    write(tmp_path, make_link(make_policy("a.example")))
    (tmp_path / f"{OTHER}.json").write_bytes(b"not json")
    (tmp_path / "README.json").write_bytes(b"{}")
    links = Links(tmp_path)
    links.load(0.0)
    assert [state.link.tap for state in links] == [TAP]


def test_an_uncompilable_policy_leaves_the_old_one_in_force(tmp_path: Path) -> None:
    links = Links(tmp_path)
    state = links.put(make_link(make_policy("a.example")), 0.0)
    broken = make_link(make_policy(rules=[msgspec.convert({"id": "x"}, type=type(make_policy("a").rules[0]))]))
    with pytest.raises(LinkRefused):
        links.put(broken, 0.0)
    assert state.link.policy == make_policy("a.example")


def test_addresses_for_names_differ_and_stay() -> None:
    names = FakeNames()
    got = [names.address_of(f"n{n}.example") for n in range(MAX_NAMES)]
    assert len(set(got)) == MAX_NAMES
    assert names.address_of("one-more.example") is None
    assert names.address_of("n7.example") == got[7]
    assert names.name_of(str(got[7])) == "n7.example"
    assert FakeNames().address_of("n0.example") == got[0]
