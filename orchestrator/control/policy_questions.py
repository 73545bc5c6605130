"""What holds for a repository right now: asked by the API, which has no way to GitHub, and answered by the worker, which has.

A question goes through a list in Redis and its answer through one of its own; both are forgotten after a while, so neither
side's death leaves anything.  Nothing but a repository's name is asked, and whoever reads the list checks it again.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable

import msgspec
import structlog

from orchestrator.control.github import GitHub, GitHubFailure
from orchestrator.control.installations import Installations
from orchestrator.control.policies import ImagePresets, PolicyBook, RefusedPolicy
from orchestrator.control.settings import ControlSettings
from orchestrator.control.store import Store
from orchestrator.core.errors import StoreError
from orchestrator.core.machine import OUR_LABEL
from orchestrator.core.policy import Policy
from orchestrator.core.presets import Presets

WAIT_S = 20.0
"""Who asks waits so long for an answer."""
POLL_S = 4.0
"""One wait on Redis; its clients give up after ten seconds."""
_REPO = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}")

log = structlog.get_logger()


class Question(msgspec.Struct, frozen=True):
    id: str
    repo: str
    until: float
    """Seconds since the epoch; nobody waits for the answer after that."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """``policy`` is what a job of ``repo`` would get now; None: it would be refused, for ``reason``.

    ``branch`` and ``blob`` say which file of the repository that is: ``git rev-parse BRANCH:.ironcd/policy.yml`` prints the
    blob.  Empty where the repository has none.
    """

    repo: str
    at: float
    policy: Policy | None = None
    reason: str = ""
    remedy: str = ""
    branch: str = ""
    blob: str = ""
    url: str = ""
    text: str = ""
    """The file's own."""
    organisation: bool = False
    """There is a policy of the organisation above it."""
    unavailable: bool = False
    """GitHub didn't answer; nothing is known."""


def is_repo(name: str) -> bool:
    return _REPO.fullmatch(name) is not None


class PolicyAnswers:
    """For the worker's process.  It reads each time: an answer is about now."""

    def __init__(
        self,
        store: Store,
        github: GitHub,
        settings: ControlSettings,
        presets: Presets,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._settings = settings
        self._book = PolicyBook(github, presets, organisation_file=settings.organisation_policy_file, fresh_s=0.0)
        self._installations = Installations(github)
        self._clock = clock

    async def round(self, wait_s: float) -> bool:
        """Answer the next question, or wait for one for so long; whether there was one.  Raises StoreError."""
        raw = await self._store.pop(self._store.names.questions, wait_s=wait_s)
        if raw is None:
            return False
        question = msgspec.json.decode(raw, type=Question)
        if self._clock() <= question.until and is_repo(question.repo):
            answer = msgspec.json.encode(await self.answer(question.repo))
            await self._store.push(self._store.names.answer(question.id), answer, lasts_s=WAIT_S)
        return True

    async def answer(self, repo: str) -> Answer:
        now = self._clock()
        try:
            installation = await self._installations.get(0, repo, now)
            if installation is None:
                reason = f"the App isn't installed on {repo}"
                return Answer(repo, now, reason=reason, remedy="Install it there: docs/operations/github-app.md.")
            made = await self._book.policy_of(installation.id, repo, await self._images(), now)
        except GitHubFailure as error:
            return Answer(repo, now, reason=error.message, remedy=error.remedy, unavailable=True)
        file = self._book.file_of(installation.id, repo)
        answer = Answer(repo, now, organisation=bool(self._settings.organisation_policy_file))
        if file is not None:
            answer = msgspec.structs.replace(answer, branch=file.branch, blob=file.blob, url=file.url)
            answer = msgspec.structs.replace(answer, text=file.text.decode("utf-8", "replace"))
        if isinstance(made, RefusedPolicy):
            return msgspec.structs.replace(answer, reason=made.reason, remedy=made.remedy)
        return msgspec.structs.replace(answer, policy=made)

    async def _images(self) -> ImagePresets | None:
        """Of the default class's image, on the first host that has it."""
        machine = self._settings.classes.get(OUR_LABEL)
        for _, sighting in sorted((await self._store.sightings()).items()):
            for image in sighting.observed.images:
                if machine is not None and image.name == machine.image:
                    return image.presets
        return None


async def ask(store: Store, repo: str, now: float, *, wait_s: float = WAIT_S) -> Answer | None:
    """The worker's answer about ``repo``; None where none came in time.  Raises StoreError."""
    question = Question(secrets.token_hex(16), repo, now + wait_s)
    await store.push(store.names.questions, msgspec.json.encode(question), lasts_s=wait_s)
    for _ in range(max(1, round(wait_s / POLL_S))):
        raw = await store.pop(store.names.answer(question.id), wait_s=min(POLL_S, wait_s))
        if raw is not None:
            return msgspec.json.decode(raw, type=Answer)
    return None


async def answer_forever(answers: PolicyAnswers, *, wait_s: float = 5.0) -> None:
    """Until cancelled."""
    while True:
        try:
            await answers.round(wait_s)
        except StoreError as error:
            log.warning("questions_lost", error=error.message)
            await asyncio.sleep(wait_s)
        except Exception:
            log.exception("question_failed")
