"""The seed's way from its drive to cloud-init, and the made-up one of a rehearsal."""

from __future__ import annotations

import json
import stat

import pytest

from orchestrator.core.names import names_of
from orchestrator.host import seed as hosts
from orchestrator.host.slots import Slot
from runner_image.guest import rehearsal, seed

NAMES = names_of("01JD0000000000000000000000")
SLOT = Slot(0, "10.201.0.0", "10.201.0.1")


def test_the_documents_are_copied_for_root_only_and_nothing_else_is(tmp_path) -> None:
    drive, folder = tmp_path / "drive", tmp_path / "seed/nocloud"
    drive.mkdir()
    for name in ("user-data", "meta-data", "network-config", "boot.cat"):
        (drive / name).write_text(f"of {name}")
    seed.copy(str(drive), str(folder))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        name: f"of {name}" for name in ("user-data", "meta-data", "network-config")
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_is_too_large_for_a_document_is_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(seed, "MAX_BYTES", 10)
    (tmp_path / "user-data").write_text("x" * 11)
    with pytest.raises(OSError, match="user-data is too large"):
        seed.copy(str(tmp_path), str(tmp_path / "seed"))
    assert not (tmp_path / "seed/user-data").exists()


def test_a_drive_that_never_comes_is_no_seed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(seed, "_WITHIN_S", 0.0)
    monkeypatch.setattr(seed, "_PLACE", str(tmp_path / "place"))
    with pytest.raises(OSError):
        seed.hand_over(str(tmp_path / "none"))


def test_a_drive_that_cant_be_let_go_of_hands_nothing_over(tmp_path, monkeypatch) -> None:
    def held(place):
        raise OSError(16, "busy", place)

    monkeypatch.setattr(seed, "_PLACE", str(tmp_path))
    monkeypatch.setattr(seed, "mount", lambda *_: (tmp_path / "user-data").write_text("#cloud-config"))
    monkeypatch.setattr(seed, "unmount", held)
    with pytest.raises(OSError, match="busy"):
        seed.hand_over("/dev/null", str(tmp_path / "nocloud"))
    assert not (tmp_path / "nocloud").exists()


def test_a_rehearsal_has_a_seed_of_the_form_of_a_jobs() -> None:
    """So that it goes the ways that a job's goes."""
    made = rehearsal.documents()
    ca = hosts.Authority("0123abcd", "-----BEGIN CERTIFICATE-----\n")
    users = json.loads(hosts.user_data(NAMES, "jit", [ca]).partition("\n")[2])
    first, _, rest = made["user-data"].partition("\n")
    assert first == "#cloud-config"
    own = json.loads(rest)
    assert own.keys() == users.keys()
    assert [file.keys() for file in own["write_files"]] == [file.keys() for file in users["write_files"]]
    assert own["write_files"][0]["path"] == hosts.JIT_FILE
    assert json.loads(made["meta-data"]).keys() == json.loads(hosts.meta_data(NAMES)).keys()
    assert form_of(json.loads(made["network-config"])) == form_of(json.loads(hosts.network_config(SLOT)))


def form_of(value: object) -> object:
    """Keys, and how many of what there are."""
    if isinstance(value, dict):
        return {key: form_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [form_of(item) for item in value]
    return type(value)
