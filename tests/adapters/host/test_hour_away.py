"""The control plane is away for an hour: the host goes on by what it knows, alone, and afterwards all of it is told once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.errors import HostError
from orchestrator.core.names import names_of
from orchestrator.core.wire import LedgerAck, LedgerBatch
from orchestrator.host import guest
from orchestrator.host.ship import BATCH, Shipper

from .test_agent import JOBS, ONE, TWO, Host, make_image

HOUR = 3600.0


class Away:
    """A control plane that takes nothing until it is ``back``, and whose first answer after that gets lost."""

    def __init__(self) -> None:
        self.back = self.lost = False
        self.lines: list[str] = []

    def ledger(self, batch: LedgerBatch) -> LedgerAck:
        if not self.back:
            raise HostError("away", code="control-away", remedy="")
        if batch.first_seq == len(self.lines) + 1:
            self.lines += batch.lines
        if not self.lost:
            self.lost = True
            raise HostError("the answer was lost", code="control-away", remedy="")
        return LedgerAck(len(self.lines) + 1)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    make_image(made)
    yield made
    made.agent.close()


def write_ledger(host: Host, first: int, last: int) -> list[str]:
    """Lines as the gateway writes them, in the minutes in which nobody takes any."""
    lines = [json.dumps({"seq": seq, "event": "mark"}) for seq in range(first, last + 1)]
    with (host.paths.ledger / "2026-01-01.jsonl").open("a") as file:
        file.write("".join(line + "\n" for line in lines))
    (host.paths.ledger / "durable").write_bytes(last.to_bytes(8, "big"))
    return lines


def test_the_job_in_its_middle_goes_on_and_the_idle_runner_ends_with_its_lifetime(host):
    """Even where the agent is killed meanwhile: what it knows is on its disk."""
    host.in_a_job(ONE)
    host.wish(ONE, policy=JOBS, generation=2, bound=True, end_by=host.clock.now + 6 * HOUR)
    host.until(lambda: "steps_released" in host.seen(ONE).marks)
    host.wish(TWO, end_by=host.clock.now + HOUR / 2)
    host.until(lambda: host.seen(TWO) and host.seen(TWO).vm == "running" and not host.busy(TWO))
    for message in (guest.Hello(), guest.JitTaken(), guest.RunnerStarted(pid=5), guest.Listening()):
        host.agent.heard(TWO, message)
    for minute in range(60):
        host.pass_time(60)
        if minute == 20:
            host.agent.close()
            host.boot()
    host.until(lambda: host.proved(TWO))
    assert host.clock.now - host.seen(TWO).marks["end_begun"] > HOUR / 2 - 120, (
        "at its time, and not at the end of the hour"
    )
    assert host.hypervisor.state(names_of(ONE).domain) == "running"
    assert host.gateway.links[names_of(ONE).tap].policy == JOBS
    assert host.wall.present().chains == {names_of(ONE).tap}
    host.tell()  # it is back, and wishes what it wished
    host.pass_time(90)
    assert host.seen(ONE).vm == "running"
    host.agent.heard(ONE, guest.JobCompleted())
    host.agent.heard(ONE, guest.RunnerExited(code=0))
    host.hypervisor.power_off(names_of(ONE).domain)
    host.until(lambda: host.proved(ONE))
    assert (host.seen(ONE).vm, host.seen(ONE).exit_code, host.seen(ONE).failure) == ("stopped", 0, None)
    assert host.files() == []


def listening(host: Host, ulid: str = ONE, **wish: object) -> None:
    host.wish(ulid, **wish)
    host.until(lambda: host.seen(ulid) and host.seen(ulid).vm == "running" and not host.busy(ulid))
    for message in (guest.Hello(), guest.JitTaken()):
        host.agent.heard(ulid, message)
    host.until(lambda: "seed_gone" in host.seen(ulid).marks)
    for message in (guest.RunnerStarted(pid=5), guest.Listening()):
        host.agent.heard(ulid, message)


def stops(host: Host, ulid: str = ONE) -> int:
    return host.talk.said.count((ulid, guest.Stop()))


@pytest.mark.parametrize("heeds", [True, False])
def test_an_idle_runner_is_told_to_stop_and_then_ends_long_before_its_lifetime(host, heeds):
    """Nobody is there who could have GitHub take it back.  What the host did is told when somebody is again."""
    listening(host, idle_s=420.0)
    host.pass_time(300)
    host.agent.close()
    host.boot()  # what it counts outlives the agent
    host.pass_time(100)
    assert (stops(host), host.seen().vm) == (0, "running")
    host.pass_time(21)
    host.until(lambda: stops(host) == 1)
    assert host.seen().failure is None, "a job may still come"
    if heeds:
        host.agent.heard(ONE, guest.RunnerExited(code=0))
        host.hypervisor.power_off(names_of(ONE).domain)
    else:
        host.pass_time(15)
        assert host.hypervisor.state(names_of(ONE).domain) == "running"
        host.pass_time(10)
    host.until(host.proved)
    assert host.seen().failure.code == "idle-too-long"
    assert "listened for 420 s" in host.seen().failure.message
    host.tell()
    assert host.seen().failure.code == "idle-too-long", "as the control plane reads it when it is back"
    assert host.files() == []


def test_a_job_that_gets_in_first_is_left_alone(host):
    listening(host, idle_s=420.0)
    host.pass_time(421)
    host.until(lambda: stops(host) == 1)
    host.agent.heard(ONE, guest.JobStarted("acme/app", 7, 1, "build"))
    host.pass_time(HOUR / 2)
    assert host.seen().vm == "running"
    assert host.seen().failure is None
    host.agent.heard(ONE, guest.RunnerExited(code=0))
    host.hypervisor.power_off(names_of(ONE).domain)
    host.until(host.proved)
    assert host.seen().failure is None


def test_a_clock_that_is_set_ends_no_idle_runner(host):
    listening(host, idle_s=420.0, end_by=0.0)
    host.set_ahead_s = HOUR
    host.pass_time(HOUR)
    assert (stops(host), host.seen().vm) == (0, "running")
    host.pass_time(430)
    host.until(lambda: stops(host) == 1)


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["ahead", "back"])
def test_a_clock_that_is_set_ends_no_job_and_stalls_nothing(host, by):
    """An NTP step, or a clock that was wrong at boot: the deadlines stay where they are, and the next wish is carried out."""
    host.in_a_job(ONE)
    host.wish(ONE, policy=JOBS, generation=2, bound=True, end_by=host.clock.now + HOUR / 2)
    host.until(lambda: "steps_released" in host.seen(ONE).marks)
    host.pass_time(10)
    host.set_clock(by)
    host.tell()
    host.pass_time(60)
    assert (host.seen(ONE).vm, host.seen(ONE).failure) == ("running", None)
    host.wish(TWO, boot_by=host.at() + 300, end_by=host.at() + HOUR)
    host.until(lambda: host.seen(TWO) and host.seen(TWO).vm == "running" and not host.busy(TWO))
    if by < 0:
        host.agent.close()
        host.boot()  # and whoever takes over knows it too
    host.pass_time(HOUR / 2 - 75)
    assert host.seen(ONE).vm == "running"
    host.pass_time(10)
    host.until(lambda: host.proved(ONE))


def test_a_guest_that_stays_on_after_its_runner_is_ended(host):
    host.in_a_job(ONE)
    host.agent.heard(ONE, guest.RunnerExited(code=0))
    host.pass_time(50)
    assert host.seen().vm == "running"
    host.pass_time(15)
    host.until(host.proved)
    assert (host.seen().exit_code, host.seen().failure) == (0, None)


def test_the_record_of_that_hour_is_shipped_whole_and_each_line_once(host):
    control = Away()
    clock = [0.0]
    shipper = Shipper("h1", host.paths, control, clock=lambda: clock[0])
    lines: list[str] = []
    for _ in range(60):
        lines += write_ledger(host, len(lines) + 1, len(lines) + BATCH // 10)
        with pytest.raises(HostError):
            shipper.ship()
        clock[0] += 60
    assert shipper.lag().lines == len(lines)
    assert shipper.lag().seconds >= HOUR
    control.back = True
    with pytest.raises(HostError):
        shipper.ship()
    shipper = Shipper("h1", host.paths, control, clock=lambda: clock[0])  # and the agent is killed as well
    while shipper.ship():
        pass
    assert control.lines == lines
    assert shipper.lag().lines == 0
