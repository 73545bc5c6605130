from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.flow import Identity
from orchestrator.core.machine import MachineClass
from orchestrator.core.policy import Policy
from orchestrator.core.wire import DesiredRunner
from orchestrator.host.converge import Situation, next_step
from orchestrator.host.deadlines import Deadlines, Due, due
from orchestrator.host.record import Record, Records

ULID = "01JZZZZZZZZZZZZZZZZZZZZZZ1"
POLICY = Policy("enforce", ())
HOUR = 3600.0
SAID = 1_800_000_000.0
"""The control plane's time as everything began."""
WISH = DesiredRunner(
    ULID, "run", MachineClass("m"), Identity(ULID), POLICY, 1, boot_by=SAID + 300, end_by=SAID + 2 * HOUR
)
RECORD = Record(ULID, MachineClass("m"), vm="running", policy=POLICY.digest, generation=1, released=True)
RECORD.ups = RECORD.marks = dict.fromkeys(("guest_hello", "runner_started", "runner_listening", "job_hint"), 500.0)


class Host:
    """Three clocks: the host's own, the one since its boot, and the control plane's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own, self.up, self.control = SAID + 7.0, 500.0, SAID
        self.start("boot-1")

    def start(self, boot: str) -> None:
        """An agent with nothing in its memory."""
        self.known = Deadlines(
            self.folder / "deadlines.json", Records(self.folder), boot, lambda: self.own, lambda: self.up
        )
        self.known.load()

    def pass_time(self, seconds: float) -> None:
        self.own, self.up, self.control = self.own + seconds, self.up + seconds, self.control + seconds

    def hear(self, wish: DesiredRunner = WISH) -> None:
        self.known.hear([wish], self.control)

    def read_off_disk(self, wish: DesiredRunner = WISH) -> None:
        self.known.hear([wish], 0.0)

    def verb(self, wish: DesiredRunner = WISH) -> str:
        return next_step(self.known.of(wish), RECORD, Situation(stop_told=True), self.up).verb

    def left(self, wish: DesiredRunner = WISH) -> float:
        return self.known.of(wish).end_by - self.up


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("whose", ["own", "control"])
@pytest.mark.parametrize("by", [HOUR, 3 * HOUR, -HOUR, -24 * HOUR], ids=lambda by: f"{by / HOUR:+.0f}h")
def test_a_clock_that_is_set_neither_ends_a_job_nor_prolongs_its_life(host, whose, by):
    host.hear()
    host.pass_time(HOUR)
    setattr(host, whose, getattr(host, whose) + by)
    host.hear()  # the control plane states its whole wish again each minute
    assert host.left() == HOUR
    host.pass_time(HOUR - 1)
    host.hear()
    assert host.verb() == "keep"
    host.pass_time(1)
    assert host.verb() == "end"


def test_a_host_whose_clock_was_wrong_from_the_start_counts_as_the_control_plane_does(host):
    host.own = SAID - 5 * HOUR
    host.hear()
    assert host.left() == 2 * HOUR


def test_a_deadline_that_is_moved_is_reckoned_anew(host):
    host.hear()
    host.control += HOUR
    longer = msgspec.structs.replace(WISH, end_by=host.control + 4 * HOUR)
    host.hear(longer)
    assert host.left(longer) == 4 * HOUR
    shorter = msgspec.structs.replace(WISH, end_by=host.control + 60)
    host.hear(shorter)
    assert host.left(shorter) == 60


@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_the_next_agent_of_the_same_boot_goes_on_with_what_was_reckoned(host, by):
    host.hear()
    host.pass_time(HOUR)
    host.own += by
    host.start("boot-1")
    host.read_off_disk()
    assert host.left() == HOUR


def test_after_a_reboot_the_hosts_clock_has_to_do_until_the_control_plane_speaks(host):
    host.hear()
    host.up, host.own = 20.0, SAID + HOUR + 100
    host.start("boot-2")
    host.read_off_disk()
    assert host.left() == HOUR - 100
    host.control = SAID + HOUR
    host.hear()
    assert host.left() == HOUR
    host.own += HOUR
    host.start("boot-2")
    host.read_off_disk()
    assert host.left() == HOUR, "and its word stays"


def test_what_was_over_before_this_boot_is_over(host):
    host.up, host.own, host.control = 20.0, SAID + 9 * HOUR, SAID + 9 * HOUR
    host.read_off_disk()
    assert host.verb() == "end"
    host.hear()
    assert host.verb() == "end"


def test_never_stays_never(host):
    never = msgspec.structs.replace(WISH, boot_by=0.0, end_by=0.0)
    host.hear(never)
    assert (host.known.of(never).boot_by, host.known.of(never).end_by) == (0.0, 0.0)
    host.pass_time(1000 * HOUR)
    assert host.verb(never) == "keep"
    assert due(Due(5.0, 5.0), 0.0, stated_at=1.0, own=1.0, up=1.0) == Due()


def test_a_control_plane_that_tells_no_time_is_taken_by_the_hosts_own_clock(host):
    host.control = 0.0
    host.hear()
    assert host.left() == 2 * HOUR - 7


def test_a_file_that_cant_be_read_or_written_stops_nothing(host):
    path = host.folder / "deadlines.json"
    path.write_text("{")
    host.start("boot-1")
    path.unlink()
    path.mkdir()
    os.chmod(path, 0o700)
    host.hear()
    assert host.left() == 2 * HOUR
