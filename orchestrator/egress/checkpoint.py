"""Signed checkpoints of the ledger: the host's statement that its first n lines had this root.

The form is C2SP's tlog-checkpoint in a signed note, so that other people's tools can verify it too: origin, size and root
(base64), a line each, an empty line, and a signature line with the key's name, and the key's 4-byte hash before the
Ed25519 signature (base64).
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.system.files import write_atomic

_ED25519 = b"\x01"


class Signer:
    """The host's key, under the host's name."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.origin = f"ironcd/{name}"
        self._key = key
        self.public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self._id = hashlib.sha256(self.origin.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    @property
    def verifier(self) -> str:
        """The public key in the form of C2SP's signed-note: ``name+hash+base64``."""
        return f"{self.origin}+{self._id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    def note(self, size: int, root: bytes) -> str:
        text = f"{self.origin}\n{size}\n{base64.b64encode(root).decode()}\n"
        signature = base64.b64encode(self._id + self._key.sign(text.encode())).decode()
        return f"{text}\n\u2014 {self.origin} {signature}\n"


def load_signer(name: str, folder: Path) -> Signer:
    """The signer whose key lies in ``folder`` (``ledger-key.pem``, 0600); it is made where there is none.

    The public half is written beside it (``ledger-key.pub``, a signed-note verifier line).
    """
    path = folder / "ledger-key.pem"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomic(path, pem, mode=0o600)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError(f"{path} holds no Ed25519 key")
    signer = Signer(name, key)
    public = folder / "ledger-key.pub"
    line = (signer.verifier + "\n").encode()
    if not public.exists() or public.read_bytes() != line:
        write_atomic(public, line, mode=0o644)
    return signer
