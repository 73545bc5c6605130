"""What the gateway does with time: idle flows end, long ones are heard of each minute."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from select import EPOLLIN, EPOLLRDHUP
from types import SimpleNamespace

import pytest

from orchestrator.core.flow import Event
from orchestrator.core.policy import Decision
from orchestrator.egress import session
from orchestrator.egress.connection import Connection
from orchestrator.egress.gateway import PROGRESS_S, Gateway, GatewayOptions
from orchestrator.egress.links import LinkState
from orchestrator.egress.poller import ENDED
from orchestrator.egress.recorder import Recorder
from orchestrator.egress.relay import Pipes, Relay
from orchestrator.egress.session import Session
from tests.unit.egress.hellos import hello

Make = Callable[..., LinkState]


class FakeRelay:
    def __init__(self) -> None:
        self.active = 0.0
        self.bytes_up, self.bytes_down = 1000, 5000
        self.ended = ""

    def abort(self, reason: str) -> None:
        self.ended = reason


@pytest.fixture
async def scene(state: Make) -> tuple[Gateway, SimpleNamespace, FakeRelay, list[Event]]:
    """A gateway with one open flow, a clock to set, and the events it records."""
    events: list[Event] = []
    recorder = Recorder(SimpleNamespace(append=events.append), gateway="host-1")  # type: ignore[arg-type]
    options = GatewayOptions(idle_timeout_s=600.0)
    gateway = Gateway(links=None, recorder=recorder, upstream=None, own=(), options=options)  # type: ignore[arg-type]
    clock = SimpleNamespace(now=0.0)
    gateway._loop = SimpleNamespace(time=lambda: clock.now)  # type: ignore[assignment]
    connection = Connection(state("allowed.example"), "tls", "203.0.113.10", 443, ())
    connection.received(hello(b"allowed.example"))
    client = SimpleNamespace(fileno=lambda: -1, setsockopt=lambda *_: None, close=lambda: None)
    flow = Session("c-1", client, connection, gateway._services, 0.0)  # type: ignore[arg-type]
    relay = FakeRelay()
    flow.relay = relay  # type: ignore[assignment]
    gateway.flows.add(flow)
    return gateway, clock, relay, events


async def test_a_long_flow_is_heard_of_each_minute(
    scene: tuple[Gateway, SimpleNamespace, FakeRelay, list[Event]],
) -> None:
    gateway, clock, relay, events = scene
    for second in range(1, 186):
        clock.now = relay.active = float(second)
        gateway.sweep()
    assert [event.event for event in events] == ["progress"] * 3
    assert [event.duration_ms for event in events] == [60_000, 120_000, 180_000]
    assert {(event.conn, event.bytes_up, event.bytes_down) for event in events} == {("c-1", 1000, 5000)}
    assert PROGRESS_S == 60.0


async def test_an_idle_flow_is_ended(scene: tuple[Gateway, SimpleNamespace, FakeRelay, list[Event]]) -> None:
    gateway, clock, relay, _ = scene
    clock.now = 600.0
    gateway.sweep()
    assert relay.ended == ""
    clock.now = 600.1
    gateway.sweep()
    assert relay.ended == "idle"


async def test_a_flow_of_more_than_ten_minutes_is_flagged(
    scene: tuple[Gateway, SimpleNamespace, FakeRelay, list[Event]],
) -> None:
    gateway, clock, relay, events = scene
    for minute in range(1, 13):
        clock.now = relay.active = minute * 60.0
        gateway.sweep()
    assert [event.flags for event in events] == [()] * 10 + [("long",)] * 2


async def test_a_host_that_is_sent_more_than_its_budget_is_told_of_once(
    scene: tuple[Gateway, SimpleNamespace, FakeRelay, list[Event]],
) -> None:
    gateway, clock, relay, events = scene
    for second in range(1, 60):
        clock.now = relay.active = float(second)
        relay.bytes_up = second * (10 << 20)
        gateway.sweep()
    (alert,) = events
    assert (alert.event, alert.verdict, alert.reason, alert.host) == (
        "alert",
        "allowed",
        "bytes_up_budget",
        "allowed.example",
    )
    assert 256 << 20 < alert.bytes_up <= 270 << 20
    clock.now = relay.active = 61.0
    gateway.sweep()
    assert events[-1].event == "progress"
    assert events[-1].flags == ("bytes_up",)


async def test_what_waits_too_long_is_ended_by_the_sweep(
    scene: tuple[Gateway, SimpleNamespace, FakeRelay, list[Event]],
) -> None:
    gateway, clock, _, events = scene
    (flow,) = gateway.flows
    flow.relay = None
    flow.deadline = 10.0
    clock.now = 9.9
    gateway.sweep()
    assert events == []
    clock.now = 10.0
    gateway.sweep()
    assert [(event.event, event.verdict, event.reason) for event in events] == [("open", "blocked", "hello_timeout")]
    assert gateway.flows == set()
    gateway.sweep()
    assert len(events) == 1


async def test_a_session_that_is_over_leaves_nothing_for_the_collector(
    scene: tuple[Gateway, SimpleNamespace, FakeRelay, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _, _, _ = scene
    monkeypatch.setattr(session, "reset", lambda _sock: None)
    (flow,) = gateway.flows
    relay = Relay(None, None, pipes=Pipes(), loop=gateway._services.loop, finished=flow._relayed)  # type: ignore[arg-type]
    flow.relay = relay
    gone = weakref.ref(relay)
    gc.disable()
    try:
        gateway._end([flow], "gateway_stopped")
        assert relay._over
        del relay, flow
        assert gone() is None
    finally:
        gc.enable()


async def test_a_blocked_flow_is_recorded_once_as_such(state: Make) -> None:
    events: list[Event] = []
    recorder = Recorder(SimpleNamespace(append=events.append), gateway="host-1")  # type: ignore[arg-type]
    connection = Connection(state("allowed.example"), "tls", "203.0.113.10", 443, ())
    connection.received(hello(b"evil.example"))
    flow = Session("c-2", None, connection, SimpleNamespace(recorder=recorder), 0.0)  # type: ignore[arg-type]
    flow.record_blocked(Decision("blocked", "not_allowed"))
    (event,) = events
    assert (event.event, event.verdict, event.reason, event.host) == ("open", "blocked", "not_allowed", "evil.example")
    assert event.tls["versions"] == "1.3,1.2"


@pytest.mark.parametrize(("length", "more"), [(session._READ, True), (session._READ - 1, False)])
async def test_a_hello_that_fills_a_read_is_nobodys_last_word(
    length: int, more: bool, state: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client sends is held back for its end only where that was announced."""
    monkeypatch.setattr(Session, "_obey", lambda *_: None)
    connection = Connection(state("allowed.example"), "tls", "203.0.113.10", 443, ())
    data = hello(b"allowed.example").ljust(length, b"\x17")
    client = SimpleNamespace(fileno=lambda: -1, recv=lambda _size: data)
    services = SimpleNamespace(recorder=None, poller=SimpleNamespace(change=lambda *_: None))
    flow = Session("c-3", client, connection, services, 0.0)  # type: ignore[arg-type]
    flow._hello(EPOLLIN)
    assert (bool(flow._events & EPOLLIN), flow._events & ENDED) == (more, 0)
    flow._client_waits(EPOLLRDHUP)
    assert flow._events & ENDED
