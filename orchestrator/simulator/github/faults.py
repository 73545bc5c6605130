"""Misbehaviour on demand: what the simulated GitHub does wrong, to whom, and how often.

A `ResponseFault` answers a request in place of the endpoint, or after it did its work (``after=True``: the POST that
succeeded and whose answer was lost).  A `DeliveryFault` drops, fails, doubles or delays webhook deliveries.  Each is used
up after ``times`` uses; the first that fits wins.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec


class ResponseFault(msgspec.Struct, forbid_unknown_fields=True):
    """``path`` is a regular expression for the whole path; ``method`` empty for any; ``host`` empty for any.

    ``status`` 0 means: no answer of its own, only the delay.
    """

    path: str
    method: str = ""
    host: str = ""
    status: int = 0
    body: Any = None
    headers: dict[str, str] = {}
    delay_s: float = 0.0
    after: bool = False
    times: int | None = None

    def fits(self, host: str, method: str, path: str) -> bool:
        return (
            self.times != 0
            and self.method.upper() in ("", method)
            and self.host in ("", host)
            and re.fullmatch(self.path, path) is not None
        )


class DeliveryFault(msgspec.Struct, forbid_unknown_fields=True):
    """``drop``: GitHub never makes the delivery.  ``fail``: it is on GitHub's list, as 502, and never arrived."""

    effect: Literal["drop", "fail", "duplicate", "delay"]
    event: str = ""
    action: str = ""
    delay_s: float = 0.0
    times: int | None = None

    def fits(self, event: str, action: str | None) -> bool:
        return self.times != 0 and self.event in ("", event) and self.action in ("", action or "")


_Fault = TypeVar("_Fault", ResponseFault, DeliveryFault)


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """All faults in force.  `responses` and `deliveries` may be changed at any time."""

    responses: list[ResponseFault] = []
    deliveries: list[DeliveryFault] = []

    def response(self, host: str, method: str, path: str) -> ResponseFault | None:
        """The fault for this request, if any; counts as a use of it."""
        fault = next((item for item in self.responses if item.fits(host, method, path)), None)
        return _used(fault)

    def delivery(self, event: str, action: str | None) -> DeliveryFault | None:
        """The fault for this delivery, if any; counts as a use of it."""
        fault = next((item for item in self.deliveries if item.fits(event, action)), None)
        return _used(fault)


def _used(fault: _Fault | None) -> _Fault | None:
    if fault is not None and fault.times is not None:
        fault.times -= 1
    return fault
