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
