from __future__ import annotations

import json

import pytest

from orchestrator.core.errors import HostError
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import LedgerAck
from orchestrator.host.paths import host_paths, make_folders
from orchestrator.host.ship import BATCH, Lag, Shipper


class Control:
    """Takes batches that begin where it wants to go on; ``forget`` is what a restored control plane does."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.wanted = 1
        self.away = False

    def ledger(self, batch):
        if self.away:
            raise HostError("away", code="control-away", remedy="")
        if batch.first_seq == self.wanted:
            self.lines += batch.lines
            self.wanted += len(batch.lines)
        return LedgerAck(self.wanted)

    def forget(self, back_to: int) -> None:
        self.wanted = back_to
        del self.lines[back_to - 1 :]


@pytest.fixture
def paths(tmp_path):
    made = host_paths(
        HostSettings(
            name="h", state_dir=str(tmp_path / "s"), run_dir=str(tmp_path / "r"), cache_dir=str(tmp_path / "c")
        )
    )
    make_folders(made)
    return made


def _write(paths, day: str, first: int, count: int) -> list[str]:
    lines = [json.dumps({"seq": seq, "x": "é"}, ensure_ascii=False) for seq in range(first, first + count)]
    (paths.ledger / f"{day}.jsonl").write_text("".join(line + "\n" for line in lines))
    (paths.ledger / "durable").write_bytes((first + count - 1).to_bytes(8, "big"))
    return lines


def _all(shipper: Shipper) -> int:
    total = 0
    while sent := shipper.ship():
        total += sent
    return total


def test_every_line_goes_over_in_order_and_once(paths):
    lines = _write(paths, "2026-01-01", 1, BATCH + 20)
    control = Control()
    shipper = Shipper("h", paths, control)
    assert _all(shipper) == BATCH + 20
    lines += _write(paths, "2026-01-02", BATCH + 21, 5)
    assert _all(shipper) == 5
    assert control.lines == lines


def test_the_next_process_goes_on_where_it_was_acknowledged(paths):
    lines = _write(paths, "2026-01-01", 1, 10)
    control = Control()
    _all(Shipper("h", paths, control))
    lines += _write(paths, "2026-01-02", 11, 3)
    assert _all(Shipper("h", paths, control)) == 3
    assert control.lines == lines


def test_what_the_control_plane_lost_is_sent_again(paths):
    lines = _write(paths, "2026-01-01", 1, 10)
    control = Control()
    shipper = Shipper("h", paths, control)
    _all(shipper)
    control.forget(4)
    lines += _write(paths, "2026-01-02", 11, 1)
    _all(shipper)
    assert control.lines == lines


def test_an_absence_loses_nothing(paths):
    lines = _write(paths, "2026-01-01", 1, 10)
    control = Control()
    control.away = True
    shipper = Shipper("h", paths, control)
    with pytest.raises(HostError):
        shipper.ship()
    control.away = False
    _all(shipper)
    assert control.lines == lines


def test_lines_that_arent_durable_yet_stay_here(paths):
    _write(paths, "2026-01-01", 1, 10)
    (paths.ledger / "durable").write_bytes((7).to_bytes(8, "big"))
    control = Control()
    assert _all(Shipper("h", paths, control)) == 7


class Keeping(Control):
    """Keeps checkpoints too; an older control plane doesn't."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.keys: set[str] = set()
        self.kept = 0

    def ledger(self, batch):
        ack = super().ledger(batch)
        self.notes += batch.checkpoints
        self.keys.add(batch.public_key)
        self.kept = max([self.kept, *(int(note) for note in batch.checkpoints)])
        return LedgerAck(ack.next_seq, self.kept)


def _checkpoint(paths, *sizes: int) -> None:
    with (paths.ledger / "checkpoints.jsonl").open("a") as file:
        file.writelines(json.dumps({"ts": 1.0, "size": size, "note": str(size)}) + "\n" for size in sizes)


def test_checkpoints_go_along_once_with_the_key(paths):
    _write(paths, "2026-01-01", 1, 10)
    (paths.ledger.parent / "ledger-key.pub").write_text("ironcd/h+0+k\n")
    _checkpoint(paths, 4, 10)
    control = Keeping()
    _all(Shipper("h", paths, control))
    _checkpoint(paths, 12)
    _all(Shipper("h", paths, control))
    assert control.notes == ["4", "10", "12"]
    assert control.keys == {"ironcd/h+0+k"}


def test_checkpoints_that_the_control_plane_lost_are_sent_again(paths):
    _write(paths, "2026-01-01", 1, 10)
    _checkpoint(paths, 2, 4, 10)
    control = Keeping()
    shipper = Shipper("h", paths, control)
    _all(shipper)
    control.kept = 2
    _write(paths, "2026-01-02", 11, 1)
    _all(shipper)
    assert control.notes == ["2", "4", "10", "4", "10"]


def test_a_control_plane_that_takes_no_checkpoints_is_sent_them_once(paths):
    _write(paths, "2026-01-01", 1, 10)
    _checkpoint(paths, 2)
    control = Control()
    shipper = Shipper("h", paths, control)
    _all(shipper)
    assert shipper.ship() == 0
    assert len(control.lines) == 10


def test_a_torn_checkpoint_is_sent_once_it_is_whole(paths):
    with (paths.ledger / "checkpoints.jsonl").open("w") as file:
        file.write('{"ts": 1.0, "size": 3, "note"')
    control = Keeping()
    shipper = Shipper("h", paths, control)
    assert _all(shipper) == 0
    with (paths.ledger / "checkpoints.jsonl").open("a") as file:
        file.write(': "3"}\n')
    _all(shipper)
    assert control.notes == ["3"]


def test_a_ledger_that_was_begun_anew_is_shipped_from_its_start(paths):
    _write(paths, "2026-01-01", 1, 10)
    control = Keeping()
    shipper = Shipper("h", paths, control)
    _all(shipper)
    control.forget(1)  # it files the new ledger beside the old one
    lines = _write(paths, "2026-01-01", 1, 3)
    _all(shipper)
    assert control.lines == lines


def test_a_host_restored_from_an_older_state_asks_once_and_waits(paths):
    _write(paths, "2026-01-01", 1, 10)
    control = Keeping()
    shipper = Shipper("h", paths, control)
    _all(shipper)
    _write(paths, "2026-01-01", 1, 6)
    assert _all(shipper) == 6
    assert shipper.ship() == 0
    assert control.wanted == 11


NOW = 1767225600.0 + 100 * 86400  # 2026-04-11


def _days(paths) -> list[str]:
    return sorted(path.stem for path in paths.ledger.glob("????-??-??.jsonl"))


def _shipped(paths, control) -> Shipper:
    for number, day in enumerate(("2026-01-01", "2026-01-02", "2026-04-09", "2026-04-11")):
        _write(paths, day, 1 + 5 * number, 5)
    shipper = Shipper("h", paths, control)
    _all(shipper)
    return shipper


def test_old_days_go_once_the_control_plane_has_them_signed(paths):
    _checkpoint(paths, 20)
    shipper = _shipped(paths, Keeping())
    assert shipper.let_go(90, NOW) == 2
    assert _days(paths) == ["2026-04-09", "2026-04-11"]
    lines = _write(paths, "2026-04-12", 21, 2)
    control = Keeping()
    control.wanted = 21
    _all(Shipper("h", paths, control))
    assert control.lines == lines


def test_nothing_goes_that_is_young_or_unsigned_or_not_to_go(paths):
    _checkpoint(paths, 7)
    control = Keeping()
    shipper = _shipped(paths, control)
    assert shipper.let_go(0, NOW) == 0
    assert shipper.let_go(90, NOW) == 1  # the first day alone is signed to its end
    assert shipper.let_go(1, NOW + 10) == 0  # looked at a moment ago
    assert _days(paths) == ["2026-01-02", "2026-04-09", "2026-04-11"]


def test_nothing_goes_that_was_not_shipped(paths):
    _write(paths, "2026-01-01", 1, 5)
    _write(paths, "2026-04-11", 6, 5)
    assert Shipper("h", paths, Keeping()).let_go(90, NOW) == 0


def test_the_days_before_today_stay_whatever_is_configured(paths):
    _checkpoint(paths, 20)
    shipper = _shipped(paths, Keeping())
    shipper.let_go(1, NOW)
    assert _days(paths) == ["2026-04-09", "2026-04-11"]


def test_how_far_the_control_plane_is_behind(paths):
    now = [100.0]
    control = Control()
    shipper = Shipper("h", paths, control, clock=lambda: now[0])
    assert shipper.lag() == Lag(0, 0.0)
    _write(paths, "2026-01-01", 1, 10)
    control.away = True
    now[0] += 30
    with pytest.raises(HostError):
        shipper.ship()
    assert shipper.lag() == Lag(10, 30.0)
    control.away = False
    shipper.ship()
    now[0] += 5
    assert shipper.lag() == Lag(0, 0.0)
    _write(paths, "2026-01-01", 1, 12)
    assert shipper.lag() == Lag(2, 5.0)


def test_a_control_plane_that_wants_old_lines_again_is_behind(paths):
    now = [0.0]
    _write(paths, "2026-01-01", 1, 10)
    control = Control()
    shipper = Shipper("h", paths, control, clock=lambda: now[0])
    _all(shipper)
    control.forget(4)
    _write(paths, "2026-01-02", 11, 1)
    now[0] = 60.0
    shipper.ship()
    assert shipper.lag() == Lag(8, 60.0)
