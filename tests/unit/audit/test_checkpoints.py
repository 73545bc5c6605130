from __future__ import annotations

from pathlib import Path

from orchestrator.audit.checkpoints import FILE, Checkpoints, kept

from .test_streams import signer


def test_what_a_killed_process_left_of_a_checkpoint_is_cut_off(tmp_path: Path) -> None:
    key = signer()
    notes = [key.note(size, bytes(32)) for size in (1, 2)]
    Checkpoints(tmp_path).take(notes[:1], 1.0)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes() + b'{"ts":2,"si')
    assert Checkpoints(tmp_path).take(notes, 2.0) == 2
    assert [place.kept.note if place.kept else None for place in kept(tmp_path)] == notes
