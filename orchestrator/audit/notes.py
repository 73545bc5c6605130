"""Reads and verifies signed checkpoints: C2SP's tlog-checkpoint in a signed note, as `orchestrator.egress.checkpoint` makes it.

Only the one form that our hosts write is read: origin, size, root, an empty line, one signature line.  Whatever else a
note holds makes it a bad one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NOTE_LIMIT = 4 << 10
_ED25519 = b"\x01"
_FORM = re.compile(
    r"(?P<text>(?P<origin>[^\s+]{1,160})\n(?P<size>0|[1-9]\d{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n)"
    r"\n\u2014 (?P<name>[^\s+]{1,160}) (?P<signature>[A-Za-z0-9+/=]{1,200})\n"
)


class BadNote(ValueError):
    """A checkpoint, or a key, that doesn't have the form that it should have, or isn't signed by who it should be."""


class Note(msgspec.Struct, frozen=True):
    """``root`` is the tree's over the first ``size`` lines of the ledger of ``origin``."""

    origin: str
    size: int
    root: bytes
    text: str
    signature: bytes


class Key(msgspec.Struct, frozen=True):
    """A host's public key: ``name`` is the origin that it signs for, ``hint`` the four bytes that stand before signatures."""

    name: str
    hint: bytes
    public: bytes


def parse_note(text: str) -> Note:
    """The note in ``text``, its signature not looked at.  Raises `BadNote`."""
    found = _FORM.fullmatch(text) if len(text) <= NOTE_LIMIT else None
    if found is None or found["name"] != found["origin"]:
        raise BadNote("not a checkpoint of a host")
    try:
        root, signature = (base64.b64decode(found[part], validate=True) for part in ("root", "signature"))
    except binascii.Error as error:
        raise BadNote(f"not a checkpoint of a host: {error}") from error
    return Note(found["origin"], int(found["size"]), root, found["text"], signature)


def parse_key(text: str) -> Key:
    """The key in a verifier line (``name+hash+base64``).  Raises `BadNote`."""
    parts = text.strip().split("+", 2)
    if len(parts) != 3 or len(text) > NOTE_LIMIT:
        raise BadNote("not a public key in the form name+hash+base64")
    try:
        hint, data = bytes.fromhex(parts[1]), base64.b64decode(parts[2], validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadNote(f"not a public key: {error}") from error
    key = Key(parts[0], hint, data[1:])
    if data[:1] != _ED25519 or len(key.public) != 32 or hint != _hint(key):
        raise BadNote("not an Ed25519 key, or its hash isn't its own")
    return key


def verify(note: Note, key: Key) -> None:
    """Raises `BadNote` where ``note`` isn't signed by ``key``."""
    if note.origin != key.name:
        raise BadNote(f"it speaks for {note.origin}, and the key is of {key.name}")
    if note.signature[:4] != key.hint:
        raise BadNote("another key signed it")
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(note.signature[4:], note.text.encode())
    except InvalidSignature:
        raise BadNote("the signature doesn't fit") from None


def _hint(key: Key) -> bytes:
    return hashlib.sha256(key.name.encode() + b"\n" + _ED25519 + key.public).digest()[:4]
