"""The relay of echoes with sockets that only remember: who is judged, what goes out, when a flow ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from orchestrator.core.flow import Event
from orchestrator.core.link import Limits
from orchestrator.core.policy import Rule, compile_policy
from orchestrator.egress.echo import request
from orchestrator.egress.echo_relay import IDLE_S, EchoRelay
from orchestrator.egress.gateway import Gateway, GatewayOptions
from orchestrator.egress.ledger import LedgerFull
from orchestrator.egress.links import LinkState
from orchestrator.egress.recorder import Recorder
from tests.unit.egress.conftest import TAP, make_policy
from tests.unit.egress.test_echo import icmp, ipv4
from tests.unit.egress.test_nflog import message

VM, SITE, RANGE = "10.201.0.3", "203.0.113.10", "203.0.113.40"


class Sock:
    def __init__(self) -> None:
        self.incoming: list[bytes] = []
        self.sent: list[tuple[bytes, str]] = []

    def fileno(self) -> int:
        return id(self)

    def recv(self, _size: int) -> bytes:
        if not self.incoming:
            raise BlockingIOError
        return self.incoming.pop(0)

    def sendto(self, data: bytes, to: tuple[str, int]) -> None:
        self.sent.append((data, to[0]))

    def close(self) -> None:
        pass


class Scene:
    """A gateway with one sandbox's link; ``ping`` is the VM's, ``answer`` the outside's."""

    def __init__(self, state: LinkState) -> None:
        self.state = state
        self.events: list[Event] = []
        self.full = False
        self.answers: dict[str, tuple[str, ...]] = {"allowed.example": (SITE,)}
        self.now = 0.0
        self.log, self.inner, self.outer = Sock(), Sock(), Sock()
        links = SimpleNamespace(of_tap=lambda tap: state if tap == TAP else None)
        ledger = SimpleNamespace(append=self.events.append, flush=self._flush)
        gateway = self.gateway = Gateway(
            links=links,  # type: ignore[arg-type]
            recorder=Recorder(ledger, gateway="host-1"),  # type: ignore[arg-type]
            upstream=SimpleNamespace(resolve=self._resolve),  # type: ignore[arg-type]
            own=("203.0.113.1",),
            options=GatewayOptions(),
        )
        loop = SimpleNamespace(
            time=lambda: self.now,
            add_reader=lambda *_: None,
            remove_reader=lambda *_: None,
            create_task=asyncio.get_running_loop().create_task,
            call_soon=asyncio.get_running_loop().call_soon,
        )
        gateway._loop = loop  # type: ignore[assignment]
        object.__setattr__(gateway._services, "loop", loop)
        gateway.echo(self.log, self.inner, self.outer)  # type: ignore[arg-type]

    def _flush(self) -> None:
        if self.full:
            raise LedgerFull("no room")

    async def _resolve(self, name: str) -> tuple[str, ...]:
        return self.answers.get(name, ())

    async def ping(self, target: str, data: bytes = bytes(56), *, ident: int = 7, tap: str = TAP) -> None:
        packet = ipv4(VM, target, icmp(ident=ident, data=data))
        self.log.incoming.append(message(f"{tap} echo ".encode(), packet))
        self._relay._asked()
        for _ in range(5):
            await asyncio.sleep(0)

    def answer(self, source: str, **fields: int) -> None:
        """Answer the last echo that went out, from ``source``."""
        sent = self.outer.sent[-1][0]
        ident, number = int.from_bytes(sent[4:6], "big"), int.from_bytes(sent[6:8], "big")
        self.outer.incoming.append(ipv4(source, "203.0.113.1", icmp(0, **{"ident": ident, "number": number, **fields})))
        self._relay._answered()

    @property
    def _relay(self) -> EchoRelay:
        assert self.gateway._echoes is not None
        return self.gateway._echoes

    def told(self) -> list[int]:
        """The kinds of ICMP message that the VM got."""
        return [packet[20] for packet, to in self.inner.sent if to == VM]


@pytest.fixture
async def scene(state: Callable[..., LinkState]) -> Scene:
    rules = (Rule(id="range", cidr=f"{RANGE}/32", ports=(22,)),)
    return Scene(state("allowed.example", "six.example", "floor.example", rules=rules, profile="sandbox"))


def standing_for(scene: Scene, name: str) -> str:
    address = scene.state.fake_names.address_of(name)
    assert address is not None
    return address


async def test_an_allowed_name_is_pinged_by_us_and_the_vm_gets_its_own_bytes(scene: Scene) -> None:
    await scene.ping(standing_for(scene, "allowed.example"), b"the secret")
    ((sent, to),) = scene.outer.sent
    assert to == SITE
    assert sent == request(int.from_bytes(sent[4:6], "big"), int.from_bytes(sent[6:8], "big"))
    assert scene.told() == []
    scene.answer(SITE)
    ((packet, _),) = scene.inner.sent
    assert packet[20] == 0
    assert packet.endswith(b"the secret")
    (event,) = scene.events
    assert (event.event, event.verdict, event.protocol, event.host) == ("open", "allowed", "icmp", "allowed.example")
    assert (event.host_source, event.resolved, event.rule) == ("dns", SITE, "test#1")


async def test_it_is_recorded_before_anything_goes_out(scene: Scene) -> None:
    scene.full = True
    await scene.ping(RANGE)
    assert scene.outer.sent == []
    assert scene.told() == [3]
    assert scene.events[-1].close_reason == "ledger_full"
    scene.full = False
    await scene.ping(RANGE)
    assert len(scene.outer.sent) == 1


async def test_one_run_of_ping_is_one_flow_that_ends_when_it_is_silent(scene: Scene) -> None:
    for second in range(70):
        scene.now = float(second)
        await scene.ping(RANGE)
        scene.answer(RANGE)
        scene.gateway.sweep()
    scene.now = 69.0 + IDLE_S - 0.1
    scene.gateway.sweep()
    assert [event.event for event in scene.events] == ["open", "progress"]
    scene.now += 0.2
    scene.gateway.sweep()
    close = scene.events[-1]
    assert (close.event, close.close_reason, close.bytes_up, close.bytes_down) == ("close", "ended", 70 * 64, 70 * 64)
    assert scene.gateway.flows == scene.state.flows == set()
    assert {event.conn for event in scene.events} == {close.conn}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("198.51.100.66", "not_allowed"),
        ("198.18.9.9", "unknown_name"),
        ("127.0.0.1", "floor_loopback"),
        ("169.254.169.254", "floor_metadata"),
        ("10.201.0.2", "floor_private"),
        ("203.0.113.1", "floor_own_address"),
    ],
)
async def test_anything_else_is_refused_and_recorded(scene: Scene, target: str, reason: str) -> None:
    await scene.ping(target)
    assert scene.outer.sent == []
    assert scene.told() == [3]
    (event,) = scene.events
    assert (event.event, event.verdict, event.reason, event.orig_dst) == ("open", "blocked", reason, target)
    assert scene.gateway.flows == set()


async def test_a_name_that_resolves_to_the_floor_or_to_ipv6_only_is_refused(scene: Scene) -> None:
    scene.answers |= {"floor.example": (SITE, "127.0.0.1"), "six.example": ("2001:db8::1",)}
    for name in ("floor.example", "six.example"):
        await scene.ping(standing_for(scene, name))
    assert scene.outer.sent == []
    assert scene.told() == [3, 3]
    assert [event.reason for event in scene.events if event.event == "open"] == ["floor_loopback", "rule"]
    assert scene.events[-1].close_reason == "no_ipv4"


async def test_a_link_that_isnt_known_or_another_address_gets_nothing(scene: Scene) -> None:
    await scene.ping(RANGE, tap="icunknown000000")
    scene.log.incoming.append(message(f"{TAP} echo ".encode(), ipv4("10.201.0.9", SITE, icmp())))
    scene._relay._asked()
    scene.log.incoming.append(message(f"{TAP} echo ".encode(), ipv4(VM, RANGE, icmp(code=3))))
    scene._relay._asked()
    assert scene.outer.sent == scene.inner.sent == []
    assert [event.reason for event in scene.events] == ["unknown_link", "unknown_link", "malformed"]


async def test_only_the_answer_to_an_echo_of_ours_is_passed_on_and_once(scene: Scene) -> None:
    await scene.ping(RANGE)
    scene.answer("203.0.113.99")
    scene.answer(RANGE, number=4)
    scene.answer(RANGE, ident=4)
    assert scene.told() == []
    scene.answer(RANGE)
    scene.answer(RANGE)
    assert scene.told() == [0]


async def test_a_policy_that_forbids_it_ends_the_flow(scene: Scene) -> None:
    await scene.ping(RANGE)
    runner = make_policy("allowed.example", rules=(Rule(id="range", cidr=f"{RANGE}/32", ports=(22,)),))
    scene.state.policy = compile_policy(runner)
    assert scene.gateway.reevaluate(scene.state) == 1
    assert (scene.events[-1].event, scene.events[-1].close_reason) == ("close", "policy")
    await scene.ping(RANGE)
    assert len(scene.outer.sent) == 1
    assert scene.events[-1].reason == "protocol_icmp"


async def test_a_policy_that_changes_while_a_name_is_looked_up_counts(scene: Scene) -> None:
    target = standing_for(scene, "allowed.example")
    packet = ipv4(VM, target, icmp())
    scene.log.incoming.append(message(f"{TAP} echo ".encode(), packet))
    scene._relay._asked()
    scene.state.policy = compile_policy(make_policy("allowed.example"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert scene.outer.sent == []
    assert scene.told() == [3]


async def test_each_identifier_is_a_flow_and_counts_against_the_vms_limit(state: Callable[..., LinkState]) -> None:
    rules = (Rule(id="range", cidr=f"{RANGE}/32"),)
    scene = Scene(state(rules=rules, profile="sandbox", limits=Limits(connections=3)))
    for ident in range(5):
        await scene.ping(RANGE, ident=ident)
    assert len(scene.outer.sent) == 3
    assert scene.told() == [3, 3]
    assert [event.reason for event in scene.events if event.verdict == "blocked"] == ["limit_connections"] * 2
    assert scene.gateway._end(set(scene.state.flows), "link_dropped") == 3
    assert {event.close_reason for event in scene.events if event.event == "close"} == {"link_dropped"}


async def test_an_error_while_sending_ends_the_flow(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(101, "unreachable")

    monkeypatch.setattr(scene.outer, "sendto", refuse)
    await scene.ping(RANGE)
    assert scene.events[-1].close_reason == "error_101"
    assert scene.gateway.flows == set()
