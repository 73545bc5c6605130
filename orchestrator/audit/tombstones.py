"""What stands in the place of records that were deleted when their time was over: enough for the proof of all others.

A run of deleted lines becomes one line ``{"seq": LAST, "ts": ..., "gone": {...}}`` with the roots of the perfect subtrees
over them (`orchestrator.core.merkle.cover`) and the leaf hash of the last one, which the next line names.  Runs end where a
checkpoint was signed, so every checkpoint can still be held against the tree.  Nothing in it tells what the records said.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from orchestrator.core.merkle import Frontier, cover, widths


class Gone(msgspec.Struct, frozen=True):
    """Records ``first`` to ``last`` were deleted.  Hashes are hexadecimal."""

    first: int
    last: int
    nodes: tuple[str, ...]
    leaf: str


class Tombstone(msgspec.Struct, frozen=True):
    seq: int
    ts: float
    """Of the youngest of them."""
    gone: Gone


def bury(first: int, leaves: Sequence[bytes], ts: float) -> Tombstone:
    """For the records from ``first`` on, by their leaf hashes."""
    last = first + len(leaves) - 1
    nodes = tuple(root.hex() for root in cover(first - 1, leaves))
    return Tombstone(last, ts, Gone(first, last, nodes, leaves[-1].hex()))


def stand_in(tree: Frontier, gone: Gone) -> None:
    """Let ``tree`` grow by the records that are gone.  Raises ValueError where they don't follow it."""
    spans = list(widths(gone.first - 1, gone.last - gone.first + 1))
    if tree.size != gone.first - 1 or len(spans) != len(gone.nodes) or len(bytes.fromhex(gone.leaf)) != 32:
        raise ValueError("this tombstone doesn't fit here")
    for width, node in zip(spans, gone.nodes, strict=True):
        root = bytes.fromhex(node)
        if len(root) != 32:
            raise ValueError("this tombstone holds no hashes")
        tree.append_subtree(root, width)
