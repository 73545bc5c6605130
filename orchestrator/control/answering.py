"""What the APIs for admins have in common: asking the store, and answering in JSON that no cache keeps."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import msgspec
from fastapi import HTTPException, Response

from orchestrator.core.errors import StoreError

_T = TypeVar("_T")


async def asked(call: Awaitable[_T]) -> _T:
    """The store's answer.  Raises HTTPException: 503, with the error's code and remedy, where there is none."""
    try:
        return await call
    except StoreError as error:
        raise HTTPException(503, error.as_dict()) from None


def as_json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers={"Cache-Control": "no-store"})
