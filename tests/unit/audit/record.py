"""A record as a host and the control plane make it, for tests that spoil it: real lines, real signatures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.core.flow import Event
from orchestrator.core.merkle import Frontier, leaf_hash
from orchestrator.egress.checkpoint import Signer

from .conftest import DAY, event

DAYS = ("2023-11-14", "2023-11-15", "2023-11-16")


class Made:
    """``count`` records, a checkpoint each ``every``, the last one at the end; spread over three days' files."""

    def __init__(self, folder: Path, *, count: int = 30, every: int = 6, name: str = "h1") -> None:
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.signer = Signer(name, Ed25519PrivateKey.generate())
        self.lines: list[bytes] = []
        self.notes: list[str] = []
        tree, prev = Frontier(), ""
        for seq in range(1, count + 1):
            line = msgspec.json.encode(self.event(seq, prev))
            self.lines.append(line)
            prev = leaf_hash(line).hex()
            tree.append(leaf_hash(line))
            if seq % every == 0 or seq == count:
                self.notes.append(self.signer.note(seq, tree.root()))
        self.write()

    @staticmethod
    def event(seq: int, prev: str) -> Event:
        blocked = seq % 5 == 0
        return event(
            seq, ts=DAY + seq, prev=prev, verdict="blocked" if blocked else "allowed", host=f"site{seq}.example"
        )

    @property
    def per_day(self) -> int:
        return -(-len(self.lines) // 3)

    def write(self, change: Callable[[list[bytes]], None] | None = None) -> None:
        lines = list(self.lines)
        if change is not None:
            change(lines)
        for number, day in enumerate(DAYS):
            part = lines[number * self.per_day : (number + 1) * self.per_day if number < 2 else None]
            (self.folder / f"{day}.jsonl").write_bytes(b"".join(line + b"\n" for line in part))
        self.write_notes(self.notes)
        (self.folder / "about.json").write_bytes(msgspec.json.encode({"key": self.signer.verifier, "since": 1.0}))

    def write_notes(self, notes: list[str]) -> None:
        kept = [{"ts": DAY, "size": int(note.split("\n")[1]), "note": note} for note in notes]
        data = b"".join(msgspec.json.encode(one) + b"\n" for one in kept)
        (self.folder / "checkpoints.jsonl").write_bytes(data)

    def edited(self, seq: int, /, **changes: object) -> bytes:
        whole = msgspec.json.decode(self.lines[seq - 1], type=Event)
        return msgspec.json.encode(msgspec.structs.replace(whole, **changes))

    def rechained(self, lines: list[bytes], seq: int) -> None:
        """Mend the chain behind an edit of record ``seq``, as somebody would who wants it not to show."""
        for number in range(seq, len(lines)):
            after = msgspec.json.decode(lines[number], type=Event)
            prev = leaf_hash(lines[number - 1]).hex()
            lines[number] = msgspec.json.encode(msgspec.structs.replace(after, prev=prev))
