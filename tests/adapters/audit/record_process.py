"""A process of the record's way: ``gateway`` writes a ledger, ``agent`` ships it, ``control`` files it.  Started by test_shipping.

Each is the product's own code in a loop.  ``control`` looks for files that tell it to die or stall at a moment that a signal
from outside can't hit: ``die-unfiled``, ``die-filed``, ``stall-filed`` in its folder.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response

from orchestrator import audit
from orchestrator.core.errors import HostError
from orchestrator.core.flow import Event, Identity
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import LedgerAck, LedgerBatch
from orchestrator.egress.checkpoint import load_signer
from orchestrator.egress.ledger import Ledger
from orchestrator.host.control import HttpControl
from orchestrator.host.paths import host_paths
from orchestrator.host.ship import Shipper


def gateway(folder: Path) -> None:
    """Appends until SIGTERM, then signs and ends."""
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ending.append(number))
    state = folder / "host"
    state.mkdir(exist_ok=True)
    ledger = Ledger(state / "ledger", gateway="h1", signer=load_signer("h1", state))
    count = 0
    while not ending:
        for _ in range(10):
            count += 1
            ledger.append(
                Event(
                    event="open", ts=round(time.time(), 3), seq=0, gateway="", who=Identity("R", repo="acme/app"),
                    protocol="tls", verdict="allowed", reason="rule", host=f"site{count}.example", port=443,
                )
            )  # fmt: skip
        ledger.commit()
        if count % 200 == 0:
            ledger.checkpoint()
        time.sleep(0.005)
    ledger.close()


def agent(folder: Path, port: int) -> None:
    (folder / "token").write_text("t")
    settings = HostSettings(
        name="h1",
        control_url=f"http://127.0.0.1:{port}",
        token_file=str(folder / "token"),
        state_dir=str(folder / "host"),
    )
    shipper = Shipper("h1", host_paths(settings), HttpControl(settings))
    while True:
        try:
            sent = shipper.ship()
        except HostError:
            sent = 0
        if not sent:
            time.sleep(0.02)


class Dying(audit.Ledger):
    """Ends, or stands still, at the moments that lie between a batch and its ack."""

    async def receive(self, batch: LedgerBatch) -> LedgerAck:
        if self._told("die-unfiled"):
            os.kill(os.getpid(), signal.SIGKILL)
        ack = await super().receive(batch)
        if self._told("die-filed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._told("stall-filed"):
            await asyncio.sleep(60)
        return ack

    def _told(self, what: str) -> bool:
        flag = self.folder.parent / what
        if not flag.exists():
            return False
        flag.rename(self.folder.parent / f"did-{what}")
        return True


def anybody(_request: Request) -> None:
    """Lets everybody ask."""


def control(folder: Path, port: int) -> None:
    app = FastAPI()
    ledger = Dying(folder / "control")
    app.include_router(audit.router(ledger, host=lambda _request: "h1", admin=anybody))

    async def ready(_request: Request) -> Response:
        return Response(msgspec.json.encode({"pid": os.getpid()}))

    app.add_route("/ready", ready)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    role, where, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if role == "gateway":
        gateway(where)
    elif role == "agent":
        agent(where, number)
    else:
        control(where, number)
