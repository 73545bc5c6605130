"""Looks names up for the gateway, with nameservers of our own choice.  A VM has no part in it.

IPv4 first, IPv6 where a name has no IPv4 address.  Every address of the answer is given back: the caller judges all of
them, and dials one of those.  Answers are kept for their time to live (at most a minute), and several connections that
wait for the same name share one question.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import structlog

TIMEOUT_S = 5.0
MAX_TTL_S = 60.0
FAILURE_TTL_S = 2.0
MAX_KEPT = 10_000
MAX_ANSWERS = 32

_log = structlog.get_logger()


class Upstream:
    """``nameservers``: ``address`` or ``address:port``; none: those of the host's resolv.conf."""

    def __init__(self, nameservers: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._asking: dict[str, asyncio.Task[tuple[str, ...]]] = {}
        self._resolver = dns.asyncresolver.Resolver(configure=not nameservers)
        if nameservers:
            self._resolver.nameservers = [_nameserver(text) for text in nameservers]
        self._resolver.search = []
        self._resolver.timeout = 2.0
        self._resolver.lifetime = TIMEOUT_S

    def known(self, name: str) -> tuple[str, ...] | None:
        """All addresses of ``name`` where they are known already, as `resolve` would say; None where it must be asked."""
        kept = self._kept.get(name)
        return kept[1] if kept is not None and kept[0] > self._clock() else None

    async def resolve(self, name: str) -> tuple[str, ...]:
        """All addresses of ``name``; none where it has none or nobody answers."""
        kept = self.known(name)
        if kept is not None:
            return kept
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._ask(name))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        return await asyncio.shield(task)

    async def _ask(self, name: str) -> tuple[str, ...]:
        answers: tuple[str, ...] = ()
        ttl = FAILURE_TTL_S
        try:
            for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
                answer = await self._resolver.resolve(
                    dns.name.from_text(name), kind, search=False, raise_on_no_answer=False
                )
                if answer.rrset:
                    answers = tuple(rdata.to_text() for rdata in answer.rrset)[:MAX_ANSWERS]
                    ttl = min(float(answer.rrset.ttl), MAX_TTL_S)
                    break
        except dns.resolver.NXDOMAIN:
            _log.info("name_unknown", name=name)
        except (dns.exception.DNSException, OSError) as error:
            ttl = 0.0  # nobody answered: the next connection may have more luck
            _log.warning("name_not_resolved", name=name, error=type(error).__name__)
        self._keep(name, answers, ttl)
        return answers

    def _keep(self, name: str, answers: tuple[str, ...], ttl: float) -> None:
        now = self._clock()
        if len(self._kept) >= MAX_KEPT:
            self._kept = {key: value for key, value in self._kept.items() if value[0] > now}
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
        self._kept[name] = (now + ttl, answers)


def _nameserver(text: str) -> dns.nameserver.Nameserver:
    address, colon, port = text.rpartition(":")
    if colon and "." in address:
        return dns.nameserver.Do53Nameserver(address, int(port))
    return dns.nameserver.Do53Nameserver(text)
