"""One connection of a VM while it lives: what is known of it, and the events about it."""

from __future__ import annotations

import socket
from typing import Any, Literal

from orchestrator.core.flow import Event, EventKind
from orchestrator.core.policy import Decision
from orchestrator.egress.connection import Connection
from orchestrator.egress.recorder import Recorder
from orchestrator.egress.relay import Relay

ADMITTED = Decision("blocked", "undecided")


class LiveFlow:
    """``began`` and ``progressed`` are on the event loop's clock."""

    __slots__ = (
        "_recorder",
        "began",
        "client",
        "connection",
        "ending",
        "half_open",
        "id",
        "opened",
        "progressed",
        "relay",
        "resolved",
    )

    def __init__(
        self, identifier: str, client: socket.socket, connection: Connection, recorder: Recorder, now: float
    ) -> None:
        self.id = identifier
        self.client = client
        self.connection = connection
        self.began = now
        self.progressed = now
        self.resolved = ""
        self.ending = ""
        """Why it is being ended from outside; empty while it isn't."""
        self.half_open = False
        self.opened = False
        self.relay: Relay | None = None
        self._recorder = recorder

    def decided(self) -> None:
        """The hello is whole, or will never be: it no longer counts as half open."""
        if self.half_open:
            self.half_open = False
            self.connection.state.half_open -= 1

    def record_blocked(self, decision: Decision) -> None:
        state = self.connection.state
        event = self._event("open", decision, close_reason="blocked")
        self._recorder.limited(state.link.tap, event, per_second=state.link.limits.events_per_second)

    def record_open(self) -> None:
        self.opened = True
        self._recorder.always(self._event("open", self.connection.decision))

    def record_progress(self, now: float) -> None:
        self.progressed = now
        self._recorder.always(self._event("progress", self.connection.decision, **self._sums(now)))

    def record_close(self, now: float, reason: str) -> None:
        event = self._event("close", self.connection.decision, close_reason=reason, **self._sums(now))
        self._recorder.always(event)

    def _sums(self, now: float) -> dict[str, Any]:
        relay = self.relay
        return {
            "duration_ms": round((now - self.began) * 1000),
            "bytes_up": relay.bytes_up if relay else 0,
            "bytes_down": relay.bytes_down if relay else 0,
        }

    def _event(self, kind: EventKind, decision: Decision, **fields: Any) -> Event:
        connection = self.connection
        hello = connection.hello
        source: Literal["sni", "ip"] = "sni" if connection.name else "ip"
        return self._recorder.event(
            kind,
            connection.state,
            connection.protocol,
            decision,
            conn=self.id,
            host=connection.name or "",
            host_source=source,
            port=connection.port,
            orig_dst=connection.address,
            resolved=self.resolved,
            flags=(*decision.flags, *connection.flags),
            tls=hello.facts() if hello is not None and kind == "open" else {},
            **fields,
        )
