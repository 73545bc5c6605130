from __future__ import annotations

from orchestrator.core.machine import MachineClass
from orchestrator.core.wire import Failure, GuestClaim
from orchestrator.host.record import Record, Records

ULID = "01JZZZZZZZZZZZZZZZZZZZZZZ1"


def test_a_mark_is_set_once():
    record = Record(ULID, MachineClass("m"))
    assert record.mark("accepted", 1.0, 101.0)
    assert not record.mark("accepted", 2.0, 102.0)
    assert (record.marks, record.ups) == ({"accepted": 1.0}, {"accepted": 101.0})
    record.unmark("accepted")
    assert (record.marks, record.ups) == ({}, {})


def test_what_another_boot_or_an_older_agent_noted_happened_no_later_than_now():
    record = Record(ULID, MachineClass("m"), marks={"accepted": 1.0, "disk_made": 2.0}, ups={"accepted": 5000.0})
    record.taken_over(30.0)
    assert record.ups == {"accepted": 30.0, "disk_made": 30.0}


def test_how_long_a_guest_is_silent_is_told_whatever_becomes_of_the_clock():
    record = Record(ULID, MachineClass("m"), heard_up=50.0)
    assert record.observed(1_800_000_000.0, 60.0).heard_at == 1_800_000_000.0 - 10
    assert record.observed(1_800_003_600.0, 61.0).heard_at == 1_800_003_600.0 - 11


def test_what_was_saved_is_loaded(tmp_path):
    records = Records(tmp_path)
    record = Record(ULID, MachineClass("m"), vm="running", slot=3, released=True, claim=GuestClaim("a/b", 5))
    record.failure = Failure("c", "m", "r", "console")
    record.mark("accepted", 1.0, 101.0)
    records.save(record)
    (loaded,) = records.load()
    assert loaded == record
    records.forget(ULID)
    records.forget(ULID)
    assert list(records.load()) == []


def test_what_cant_be_read_is_left_out(tmp_path):
    records = Records(tmp_path)
    records.save(Record(ULID, MachineClass("m")))
    (tmp_path / f"ironcd-{ULID.lower()[:-1]}2.json").write_text("{")
    (tmp_path / "notes.json").write_text("{}")
    assert [record.id for record in records.load()] == [ULID]
    assert (tmp_path / "notes.json").exists()


def test_what_the_control_plane_sees_has_no_secret():
    record = Record(ULID, MachineClass("m"), vm="running")
    assert not hasattr(record.observed(1.0, 1.0), "jit")
