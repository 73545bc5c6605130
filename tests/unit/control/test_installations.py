"""Where the App is installed: how often GitHub is asked, and whose question an answer answers."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.control.github import Installation, Unavailable
from orchestrator.control.github_fake import FakeGitHub
from orchestrator.control.installations import FRESH_S, SUSPENDED_S, Installations

from .stage import INSTALLATION, ORG

STANDS = Installation(INSTALLATION, ORG, organization=True)
SUSPENDED = Installation(INSTALLATION, ORG, organization=True, suspended=True)


class SlowGitHub(FakeGitHub):
    """Answers, as it is then, when it is told to; or doesn't answer."""

    def __init__(self) -> None:
        super().__init__()
        self.apps[INSTALLATION] = STANDS
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.fails = False

    async def installations(self) -> list[Installation]:
        self.asked += 1
        await self.may_answer.wait()
        if self.fails:
            raise Unavailable("503")
        return await super().installations()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_installation_that_is_suspended_is_asked_for_each_minute() -> None:
    github = FakeGitHub()
    known = Installations(github)
    github.apps[INSTALLATION] = STANDS
    assert await known.get(INSTALLATION, "", 0.0) == STANDS
    github.apps[INSTALLATION] = SUSPENDED
    assert await known.get(INSTALLATION, "", FRESH_S - 1) == STANDS
    assert await known.get(INSTALLATION, "", FRESH_S) == SUSPENDED
    github.apps[INSTALLATION] = STANDS
    assert await known.get(INSTALLATION, "", FRESH_S + SUSPENDED_S - 1) == SUSPENDED
    assert await known.get(INSTALLATION, "", FRESH_S + SUSPENDED_S) == STANDS
    assert await known.get(INSTALLATION, "", FRESH_S + 3 * SUSPENDED_S) == STANDS
    assert github.calls.count("installations") == 3


async def test_one_that_is_back_is_told_once() -> None:
    github = FakeGitHub()
    known = Installations(github)
    github.apps[INSTALLATION] = SUSPENDED
    await known.ask(INSTALLATION, 0.0)
    assert known.came_back() == []
    github.apps[INSTALLATION] = STANDS
    await known.ask(INSTALLATION, 1.0)
    assert [known.came_back(), known.came_back()] == [[STANDS], []]
    await known.ask(INSTALLATION, 2.0)
    assert known.came_back() == []


async def test_who_asks_while_a_question_is_under_way_shares_the_next_one() -> None:
    """What it answers may be from before."""
    github = SlowGitHub()
    known = Installations(github)
    first = asyncio.create_task(known.ask(INSTALLATION, 0.0))
    await settled()
    later = [asyncio.create_task(known.ask(INSTALLATION, 0.0)) for _ in range(5)]
    await settled()
    assert github.asked == 1
    github.may_answer.set()
    assert await first == STANDS
    assert await asyncio.gather(*later) == [STANDS] * 5
    assert github.asked == 2


async def test_a_question_without_an_answer_answers_nobody() -> None:
    github = SlowGitHub()
    known = Installations(github)
    github.may_answer.set()
    assert await known.ask(INSTALLATION, 0.0) == STANDS
    github.may_answer.clear()
    github.fails = True
    asks = [asyncio.create_task(known.ask(INSTALLATION, 0.0)) for _ in range(2)]
    await settled()
    github.may_answer.set()
    await settled()
    for one in asks:
        with pytest.raises(Unavailable):
            await one
    assert github.asked == 3
