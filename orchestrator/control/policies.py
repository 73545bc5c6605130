"""The policy of a repository's jobs: its file on the default branch under the organisation's, made into one `Policy`.

A file is read at most once a minute, and once for all who ask at the same time.  It is read through the contents API
with no ref, which is the default branch: what a pull request changes counts when it is merged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from orchestrator.control.github import GitHub, PolicyText, Refused
from orchestrator.core.effective import baseline_policy, effective_policy
from orchestrator.core.errors import PolicyErrors, UserError
from orchestrator.core.policy import Policy
from orchestrator.core.policy_document import PolicyFile
from orchestrator.core.policy_file import read_policy
from orchestrator.core.presets import Presets

PATH = ".ironcd/policy.yml"

ImagePresets = Mapping[str, Sequence[str]]


class RefusedPolicy(msgspec.Struct, frozen=True):
    """Why a repository's jobs get no policy: ``reason`` names line and column, ``remedy`` what to do."""

    reason: str
    remedy: str
    unread: bool = False
    """GitHub refused to show the file, for now or for good."""
    forbids: bool = False
    """The files were read, and the organisation's forbids what the repository's asks for.  False where a file is missing
    or can't be read."""

    @property
    def summary(self) -> str:
        """What fits in a commit status: 140 characters."""
        reason, remedy = (text.strip().partition("\n")[0] for text in (self.reason, self.remedy))
        return f"{reason} - {remedy}"[:140]


class _Read(msgspec.Struct, frozen=True):
    at: float
    file: PolicyText | None


class PolicyBook:
    def __init__(self, github: GitHub, presets: Presets, *, organisation_file: str = "", fresh_s: float = 60.0) -> None:
        self._github = github
        self._presets = presets
        self._organisation_file = organisation_file
        self._fresh_s = fresh_s
        self._read: dict[tuple[int, str], _Read] = {}
        self._locks: dict[tuple[int, str], asyncio.Lock] = {}
        self._organisation: tuple[bytes, PolicyFile] | None = None
        self._made: dict[tuple[int, str, bytes], tuple[_Read, PolicyFile | None, Policy | RefusedPolicy]] = {}
        self.baseline = baseline_policy(presets.builtin)

    async def policy_of(
        self, installation: int, repo: str, images: ImagePresets | None, now: float
    ) -> Policy | RefusedPolicy:
        """What holds for a job of ``repo`` on an image with ``images``.  Raises `GitHubFailure` where it can't be read."""
        try:
            read = await self._file(installation, repo, now)
        except Refused as error:
            return RefusedPolicy(error.message, error.remedy, unread=True)
        try:
            organisation = self._organisation_policy(images)
        except UserError as error:
            return RefusedPolicy(error.message, error.remedy)
        key = (installation, repo, msgspec.json.encode(images, order="deterministic"))
        made = self._made.get(key)
        if made is None or made[0] is not read or made[1] is not organisation:
            made = self._made[key] = (read, organisation, self._make(read, organisation, images))
        return made[2]

    def _make(
        self, read: _Read, organisation: PolicyFile | None, images: ImagePresets | None
    ) -> Policy | RefusedPolicy:
        try:
            own = None
            if read.file is not None:
                own = read_policy(read.file.text, source=PATH, presets=self._presets, image_presets=images)
        except UserError as error:
            return RefusedPolicy(error.message, error.remedy)
        try:
            return effective_policy(organisation, own, self._presets.builtin, images)
        except UserError as error:
            return RefusedPolicy(error.message, error.remedy, forbids=isinstance(error, PolicyErrors))

    def file_of(self, installation: int, repo: str) -> PolicyText | None:
        """The repository's file as it was read last; None where it has none, or wasn't read."""
        read = self._read.get((installation, repo))
        return read.file if read is not None else None

    def forget(self, repo: str) -> None:
        """Read its file again the next time."""
        for key in [key for key in self._read if key[1] == repo]:
            del self._read[key]

    async def _file(self, installation: int, repo: str, now: float) -> _Read:
        key = (installation, repo)
        async with self._locks.setdefault(key, asyncio.Lock()):
            read = self._read.get(key)
            if read is None or not 0 <= now - read.at < self._fresh_s:
                found = await self._github.read_file(installation, repo, PATH)
                read = self._read[key] = _Read(now, found)
            return read

    def _organisation_policy(self, images: ImagePresets | None) -> PolicyFile | None:
        """The organisation's file, read anew when it changed.  One that can't be read refuses every job."""
        if not self._organisation_file:
            return None
        path = Path(self._organisation_file)
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"the organisation's policy {path} can't be read: {error.strerror}",
                code="policy-unreadable",
                remedy="Put the file there, readable by the control plane.",
            ) from error
        if self._organisation is None or self._organisation[0] != text:
            file = read_policy(text, source=path.name, presets=self._presets, scope="org", image_presets=images)
            self._organisation = (text, file)
        return self._organisation[1]
