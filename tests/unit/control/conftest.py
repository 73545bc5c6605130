from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import fakeredis
import pytest

from .stage import Stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def lua_stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """With a Redis that runs scripts, such as the receiver's."""
    made = Stage(tmp_path, redis=fakeredis.FakeAsyncRedis())
    yield made
    await made.close()
