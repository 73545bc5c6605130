"""What admins are answered where the store can't be asked, and that no cache keeps what they are told."""

from __future__ import annotations

import pytest
from fastapi import HTTPException

from orchestrator.control.answering import as_json, asked
from orchestrator.core.errors import StoreError


async def test_a_store_that_is_away_is_a_503_with_its_remedy() -> None:
    async def away() -> None:
        raise StoreError("Redis is away", code="store-unavailable", remedy="start it")

    with pytest.raises(HTTPException) as caught:
        await asked(away())
    assert caught.value.status_code == 503
    assert (caught.value.detail["code"], caught.value.detail["remedy"]) == ("store-unavailable", "start it")


async def test_an_answer_is_passed_on_and_kept_by_nobody() -> None:
    async def there() -> dict[str, int]:
        return {"runners": 2}

    answer = as_json(await asked(there()))
    assert (answer.body, answer.headers["cache-control"]) == (b'{"runners":2}', "no-store")
    assert answer.headers["content-type"] == "application/json"
