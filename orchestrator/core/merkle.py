"""The ledger's hashes: RFC 6962's Merkle tree over its lines, kept as a frontier.

A leaf is one line's bytes, without the newline.  The tree's root over the first n lines stands in a signed checkpoint, so
a line edited, moved, taken out or cut off the end no longer fits a checkpoint that lies elsewhere.  Each line also names
the leaf hash of the line before it, which says *which* line was touched.

A frontier is the list of perfect subtrees that cover the lines so far, widest first: all that is needed to append, about
log2(n) hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(line: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A tree that can only grow.  ``size`` is the number of leaves, ``nodes`` the roots of its perfect subtrees."""

    __slots__ = ("nodes", "size")

    def __init__(self, size: int = 0, nodes: Sequence[bytes] = ()) -> None:
        if len(nodes) != size.bit_count():
            raise ValueError(f"a frontier of {size} leaves has {size.bit_count()} nodes, not {len(nodes)}")
        self.size = size
        self.nodes = list(nodes)

    def append(self, leaf: bytes) -> None:
        """Add a leaf by its hash."""
        width = self.size
        while width & 1:
            leaf = node_hash(self.nodes.pop(), leaf)
            width >>= 1
        self.nodes.append(leaf)
        self.size += 1

    def append_subtree(self, root: bytes, width: int) -> None:
        """Add ``width`` leaves by the root of the perfect subtree over them.

        Raises ValueError where such a subtree can't begin here: see `widths`.
        """
        if width < 1 or width & (width - 1) or self.size % width:
            raise ValueError(f"no perfect subtree of {width} leaves begins behind leaf {self.size}")
        rank = self.size // width
        while rank & 1:
            root = node_hash(self.nodes.pop(), root)
            rank >>= 1
        self.nodes.append(root)
        self.size += width

    def root(self) -> bytes:
        if not self.nodes:
            return EMPTY_ROOT
        root = self.nodes[-1]
        for node in reversed(self.nodes[:-1]):
            root = node_hash(node, root)
        return root

    def copy(self) -> Frontier:
        return Frontier(self.size, self.nodes)


def widths(first: int, count: int) -> Iterator[int]:
    """How wide the perfect subtrees are, in order, that cover ``count`` leaves behind the ``first`` ones: the fewest there can be."""
    while count > 0:
        widest = 1 << (count.bit_length() - 1)
        width = min(first & -first, widest) if first else widest
        yield width
        first += width
        count -= width


def cover(first: int, parts: Iterable[tuple[int, bytes]]) -> list[bytes]:
    """The roots of these subtrees: what is left of leaves that were deleted, so that every later root can be computed.

    ``parts`` are the leaves behind the ``first`` ones, each a width and a root: 1 and its hash for a leaf, or what an
    earlier cover left.
    """
    made: list[tuple[int, int, bytes]] = []
    for width, root in parts:
        made.append((first, width, root))
        first += width
        while len(made) > 1 and _are_siblings(made[-2], made[-1]):
            (start, half, left), (_, _, right) = made[-2:]
            made[-2:] = [(start, 2 * half, node_hash(left, right))]
    return [root for _, _, root in made]


def _are_siblings(left: tuple[int, int, bytes], right: tuple[int, int, bytes]) -> bool:
    return left[1] == right[1] and left[0] % (2 * left[1]) == 0


def root_of(lines: Iterable[bytes]) -> bytes:
    """The root over ``lines``, from nothing."""
    frontier = Frontier()
    for line in lines:
        frontier.append(leaf_hash(line))
    return frontier.root()
