"""What stands in the place of records that were deleted when their time was over: enough for the proof of all others.

A run of deleted lines becomes one line ``{"seq": LAST, "ts": ..., "gone": {...}}`` with the roots of the perfect subtrees
over them (`orchestrator.core.merkle.cover`) and the leaf hash of the last one, which the next line names.  Runs end where a
checkpoint was signed, so every checkpoint can still be held against the tree.  Nothing in it tells what the records said.
"""

from __future__ import annotations

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


class Grave:
    """Gathers a run of records that go, from number ``first`` on."""

    def __init__(self, first: int) -> None:
        self._first = first
        self.last = first - 1
        self._parts: list[tuple[int, bytes]] = []
        self._ts = 0.0
        self._leaf = ""

    def take(self, leaf: bytes, ts: float) -> None:
        """A record, by its leaf hash."""
        self._parts.append((1, leaf))
        self._ts, self._leaf = max(self._ts, ts), leaf.hex()
        self.last += 1

    def take_over(self, stone: Tombstone) -> None:
        """Records that went earlier."""
        gone = stone.gone
        spans = widths(gone.first - 1, gone.last - gone.first + 1)
        self._parts += [(width, bytes.fromhex(node)) for width, node in zip(spans, gone.nodes, strict=True)]
        self._ts, self._leaf, self.last = max(self._ts, stone.ts), gone.leaf, gone.last

    def close(self) -> Tombstone:
        nodes = tuple(root.hex() for root in cover(self._first - 1, self._parts))
        return Tombstone(self.last, self._ts, Gone(self._first, self.last, nodes, self._leaf))


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
