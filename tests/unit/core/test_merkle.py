"""The frontier beside the definition in RFC 6962, 2.1."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.merkle import EMPTY_ROOT, Frontier, cover, leaf_hash, root_of, widths


def defined(lines: list[bytes]) -> bytes:
    """MTH, word for word."""
    if not lines:
        return hashlib.sha256(b"").digest()
    if len(lines) == 1:
        return hashlib.sha256(b"\x00" + lines[0]).digest()
    k = 1
    while k * 2 < len(lines):
        k *= 2
    return hashlib.sha256(b"\x01" + defined(lines[:k]) + defined(lines[k:])).digest()


@given(st.lists(st.binary(max_size=4), max_size=70))
def test_the_root_is_that_of_the_definition(lines: list[bytes]) -> None:
    assert root_of(lines) == defined(lines)


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=40), st.data())
def test_a_frontier_goes_on_where_it_was_saved(lines: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(lines)))
    first = Frontier()
    for line in lines[:at]:
        first.append(leaf_hash(line))
    second = Frontier(first.size, tuple(first.nodes))
    for line in lines[at:]:
        second.append(leaf_hash(line))
    assert second.root() == defined(lines)
    assert second.size == len(lines)


def test_rfc_6962_test_vectors() -> None:
    # From certificate-transparency's reference tests: leaves and the roots over the first n of them.
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    roots = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for size, root in roots.items():
        assert root_of(bytes.fromhex(leaf) for leaf in leaves[:size]).hex() == root
    assert root_of([]) == EMPTY_ROOT


def test_a_frontier_with_the_wrong_number_of_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="2 nodes"):
        Frontier(3, (b"x",))


def test_a_cover_stands_for_the_leaves_that_are_gone() -> None:
    leaves = [leaf_hash(b"%d" % number) for number in range(70)]
    for first in range(0, 40, 3):
        for last in range(first, 64, 5):
            whole, thinned = Frontier(), Frontier()
            for leaf in leaves[:first]:
                thinned.append(leaf)
            gone = leaves[first:last]
            for width, root in zip(widths(first, len(gone)), cover(first, [(1, leaf) for leaf in gone]), strict=True):
                thinned.append_subtree(root, width)
            for leaf in leaves[last:]:
                thinned.append(leaf)
            for leaf in leaves:
                whole.append(leaf)
            assert thinned.root() == whole.root(), (first, last)


def test_a_subtree_begins_only_where_it_is_aligned() -> None:
    tree = Frontier()
    tree.append(leaf_hash(b"x"))
    for width in (0, 2, 3):
        with pytest.raises(ValueError, match="no perfect subtree"):
            tree.append_subtree(bytes(32), width)


def test_covers_of_neighbours_become_the_cover_of_both() -> None:
    leaves = [leaf_hash(b"%d" % number) for number in range(40)]
    for first in range(6):
        for middle in range(first, 40):
            left = list(
                zip(
                    widths(first, middle - first),
                    cover(first, [(1, leaf) for leaf in leaves[first:middle]]),
                    strict=True,
                )
            )
            right = [(1, leaf) for leaf in leaves[middle:]]
            assert cover(first, left + right) == cover(first, [(1, leaf) for leaf in leaves[first:]])
