"""What to do next with one accepted connection, from its first byte to the dial.  No I/O: the gateway does as it is told.

```
begin ─▶ Read ─received─▶ Read | Block | Resolve ─answered─▶ Block | Fail | Dial
```
A TCP connection (to a range) has no hello: `begin` answers Dial or Block at once; so has an ICMP echo, whose ``name`` is
the one that its address stands for.  The policy is looked up anew at every
step, so a change in between counts.  Nothing is resolved or dialled before the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from orchestrator.core.flow import Flow
from orchestrator.core.policy import HTTPS, CompiledPolicy, Decision, decide, is_dialled, judge_address
from orchestrator.egress.hello import Hello, HelloReader, Invalid
from orchestrator.egress.links import LinkState


class Read(msgspec.Struct, frozen=True):
    """Wait for bytes of the client (within the deadline that began when it was accepted)."""


class Resolve(msgspec.Struct, frozen=True):
    """Look ``name`` up with our own resolver."""

    name: str


class Dial(msgspec.Struct, frozen=True):
    """Connect to the first of ``addresses`` that answers, then send it ``head``, then only move bytes."""

    addresses: tuple[str, ...]
    port: int
    head: bytes


class Block(msgspec.Struct, frozen=True):
    """Reset the connection and record why."""

    decision: Decision


class Fail(msgspec.Struct, frozen=True):
    """Allowed, and still not possible (``reason``): reset the connection."""

    reason: str


Command = Read | Resolve | Dial | Block | Fail


class Connection:
    """``address`` and ``port`` are what the client dialled; ``own`` are the host's own addresses."""

    __slots__ = (
        "_judged_by",
        "_own",
        "_reader",
        "address",
        "decision",
        "flags",
        "hello",
        "name",
        "port",
        "protocol",
        "state",
    )

    def __init__(
        self, state: LinkState, protocol: Literal["tls", "tcp", "icmp"], address: str, port: int, own: Iterable[str]
    ) -> None:
        self.state = state
        self.protocol = protocol
        self.address = address
        self.port = port
        self.name: str | None = None
        self.hello: Hello | None = None
        self.decision = Decision("blocked", "undecided")
        self.flags: tuple[str, ...] = ()
        self._own = own
        self._judged_by: CompiledPolicy | None = None
        self._reader = HelloReader(allow_ech=state.policy.policy.allow_ech)

    def begin(self) -> Command:
        if self.protocol == "tls":
            return Read()
        return self._judged()

    def received(self, data: bytes) -> Command:
        """The client sent ``data``; no bytes: it ended."""
        if not data:
            return self._block(Decision("blocked", "hello_cut" if self._reader.data else "no_hello"))
        result = self._reader.feed(data)
        if result is None:
            return Read()
        if isinstance(result, Invalid):
            return self._block(Decision("blocked", result.reason))
        self.hello = result
        self.name = result.name
        if result.ech:
            self.flags += ("ech",)
        return self._judged()

    def timed_out(self) -> Block:
        return self._block(Decision("blocked", "hello_timeout"))

    def answered(self, answers: Sequence[str]) -> Command:
        """Our resolver's ``answers`` for the name; none: it has none."""
        decision = self.decision
        if self.state.policy is not self._judged_by:
            decision = self.decision = self.judge()
        if not decision.passes:
            return self._block(decision)
        if not answers:
            return Fail("dns_failed")
        for answer in answers:
            why = self._judge_address(answer)
            if why is not None:
                return self._block(Decision("blocked", why, decision.rule))
        if self._mismatch(answers):
            self.flags += ("dst_mismatch",)
        return self._dial(tuple(answers))

    def judge(self) -> Decision:
        """The verdict on this connection as the policy is now."""
        policy = self._judged_by = self.state.policy
        decision = decide(policy, Flow(self.protocol, self.port, self.name, self.address), own=self._own)
        if self.name is not None:
            decision = self.state.within_budget(decision, self.name)
        if self.hello is not None and self.hello.ech and not policy.policy.allow_ech:
            return Decision("blocked", "ech", decision.rule)
        return decision

    def judge_live(self, resolved: str) -> Decision:
        """The verdict, now, on this connection while it is open to ``resolved``: from here on, its `decision`.

        Cheap where the policy is the one that it was judged by before.
        """
        if self.state.policy is not self._judged_by:
            decision = self.judge()
            why = self._judge_address(resolved) if decision.passes and resolved else None
            self.decision = decision if why is None else Decision("blocked", why, decision.rule)
        return self.decision

    def _judge_address(self, address: str) -> str | None:
        port = None if self.protocol == "icmp" else HTTPS[0]
        return judge_address(self.state.policy, address, own=self._own, port=port)

    def _judged(self) -> Command:
        decision = self.judge()
        if not decision.passes:
            return self._block(decision)
        self.decision = decision
        if self.name is not None:
            return Resolve(self.name)
        return self._dial((self.address,))

    def _dial(self, addresses: tuple[str, ...]) -> Dial:
        head = bytes(self._reader.data)
        self._reader.data.clear()  # a connection may live for hours; its hello needn't
        return Dial(addresses, self.port, head)

    def _block(self, decision: Decision) -> Block:
        self.decision = decision
        return Block(decision)

    def _mismatch(self, answers: Sequence[str]) -> bool:
        """True where the client dialled another place than the one that its hello names."""
        if is_dialled(self.address):
            return self.address not in answers
        return self.state.fake_names.name_of(self.address) != self.name
