from __future__ import annotations

import json

import pytest

from orchestrator.core.errors import HostError
from orchestrator.core.settings import HostSettings
from orchestrator.host.paths import host_paths, make_folders
from orchestrator.host.ship import BATCH, Shipper


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
        return self.wanted

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
