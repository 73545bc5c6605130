"""Secrets out of files: rotated in place, and nothing where there is nothing."""

from __future__ import annotations

from pathlib import Path

from orchestrator.system.log import redact
from orchestrator.system.secret_file import LOOK_EVERY_S, SecretFile


def test_it_is_read_again_when_it_changes(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "secret"
    secret = SecretFile(str(path), clock=lambda: now[0])
    assert secret() == b""
    path.write_text("first secret\n")
    assert secret() == b""
    now[0] += LOOK_EVERY_S
    assert secret() == b"first secret"
    path.write_text("second secret")
    now[0] += LOOK_EVERY_S
    assert secret() == b"second secret"
    path.unlink()
    now[0] += LOOK_EVERY_S
    assert secret() == b""


def test_it_never_gets_into_the_log(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a secret of a file")
    assert SecretFile(str(tmp_path / "s"))() == b"a secret of a file"
    assert redact("it is a secret of a file!") == "it is [secret]!"
