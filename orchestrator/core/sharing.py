"""How repositories, organisations and classes share what the hosts can give: quotas, weights and priorities.

An organisation here is the account that owns a repository, so a person's account is one too.  Names are compared without
regard to case, as GitHub does.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from orchestrator.core.machine import MachineClass

PRIORITIES = 10
"""Priorities go from minus this to plus this; so a job ages from the lowest to the highest in a bounded time."""


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one repository, organisation or class may have.  A limit that is None doesn't hold it back."""

    runners: int | None = None
    """At most so many runners at once."""
    vcpus: int | None = None
    """At most so many vCPUs at once, over all of its runners."""
    weight: float = 1.0
    """When the hosts are full, it gets so many times the share of one with weight 1."""
    priority: int = 0
    """From -10 to 10: a job of a higher one goes first, whatever the shares."""


class Sharing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    repository: Share = Share()
    """Of each repository that has no entry of its own."""
    organisation: Share = Share()
    """Of each organisation that has no entry of its own."""
    repositories: dict[str, Share] = {}
    """By ``owner/name``, in lower case."""
    organisations: dict[str, Share] = {}
    """By name, in lower case."""
    classes: dict[str, Share] = {}
    """By label."""
    ageing_s: float = 600.0
    """A repository that waits and has no machine at all goes up by one priority after so long, again and again."""
    reserve_s: float = 120.0
    """A job that has its turn and waited so long for room has a host kept for it."""

    def of_repository(self, repo: str) -> Share:
        return self.repositories.get(repo.lower(), self.repository)

    def of_organisation(self, owner: str) -> Share:
        return self.organisations.get(owner.lower(), self.organisation)

    def of_class(self, label: str) -> Share:
        return self.classes.get(label, NO_LIMIT)

    def priority_of(self, repo: str, label: str) -> int:
        """Of a job of ``repo`` that asks for class ``label``."""
        both = self.of_repository(repo).priority + self.of_class(label).priority
        return max(-PRIORITIES, min(PRIORITIES, both))


NO_LIMIT = Share()


def owner_of(repo: str) -> str:
    return repo.partition("/")[0].lower()


class InUse(msgspec.Struct):
    """How many runners somebody has, and how many vCPUs they have together."""

    runners: int = 0
    vcpus: int = 0

    def add(self, machine: MachineClass) -> None:
        self.runners += 1
        self.vcpus += machine.vcpus


class Quotas:
    """Who has how much, held against `Sharing`.  Everything `take` is told of counts until the object is thrown away."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._used: dict[tuple[str, str], InUse] = {}

    def take(self, repo: str, machine: MachineClass) -> None:
        for whose, _ in self._parties(repo, machine):
            self._used.setdefault(whose, InUse()).add(machine)

    def used(self) -> Mapping[tuple[str, str], InUse]:
        """By kind (``repository``, ``organisation``, ``class``) and name, of all that have any."""
        return self._used

    def why_not(self, repo: str, machine: MachineClass) -> str:
        """The quota that one more ``machine`` for ``repo`` would break, with used and limit; empty where none is."""
        for (kind, name), share in self._parties(repo, machine):
            used = self._used.get((kind, name), _NOTHING)
            whose = f"the quota of {kind} {name}"
            if share.runners is not None and used.runners + 1 > share.runners:
                return f"{whose} is used up: {used.runners} of {share.runners} runners"
            if share.vcpus is not None and used.vcpus + machine.vcpus > share.vcpus:
                needs = (
                    f"{used.vcpus} of {share.vcpus} vCPUs are in use, and class {machine.name} needs {machine.vcpus}"
                )
                return f"{whose} has no room: {needs}"
        return ""

    def _parties(self, repo: str, machine: MachineClass) -> tuple[tuple[tuple[str, str], Share], ...]:
        owner = owner_of(repo)
        return (
            (("repository", repo.lower()), self._sharing.of_repository(repo)),
            (("organisation", owner), self._sharing.of_organisation(owner)),
            (("class", machine.name), self._sharing.of_class(machine.name)),
        )


_NOTHING = InUse()
