"""``[sharing]``: quotas, weights and priorities, as they are written and as the control plane takes them.

Beside their types, names are looked at: a quota for a class that there isn't, or for a repository without its owner, would
hold nobody back and be noticed by nobody.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

import msgspec
from pydantic import Field

from orchestrator.core.errors import ConfigurationError
from orchestrator.core.machine import OUR_LABEL, MachineClass, match_labels
from orchestrator.core.sharing import PRIORITIES, Share, Sharing
from orchestrator.surface.sections import Section

_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:_[A-Za-z0-9]+)?")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


class ShareSection(Section):
    runners: int | None = Field(default=None, ge=0)
    """At most so many runners at once; none where it is 0, no limit where it isn't set."""
    vcpus: int | None = Field(default=None, ge=0)
    """At most so many vCPUs at once, over all of its runners."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """When the hosts are full, it gets so many times the share of one with weight 1."""
    priority: int = Field(default=0, ge=-PRIORITIES, le=PRIORITIES)
    """From -10 to 10: a job of a higher one goes first.  That of a repository and that of a class are added up."""


class SharingSection(Section):
    repository: ShareSection = ShareSection()
    """What each repository may have that has no entry in `sharing.repositories`."""
    organisation: ShareSection = ShareSection()
    """What each organisation (or other owner of repositories) may have that has no entry in `sharing.organisations`.
    Its priority means nothing."""
    repositories: dict[str, ShareSection] = Field(default_factory=dict)
    """Repositories with an entry of their own: ``[sharing.repositories."owner/name"]``, with the keys of
    ``sharing.repository``."""
    organisations: dict[str, ShareSection] = Field(default_factory=dict)
    """Organisations with an entry of their own: ``[sharing.organisations.NAME]``."""
    classes: dict[str, ShareSection] = Field(default_factory=dict)
    """What all runners of a class may have together: ``[sharing.classes.NAME]``, NAME as in ``[classes.NAME]``, or a size
    (``ironcd-4cpu-16gb``).  Its weight means nothing."""
    ageing_s: float = Field(default=600.0, ge=0)
    """A repository that waits and has no machine at all goes up by one priority after so many seconds, again and again;
    0: never."""
    reserve_s: float = Field(default=120.0, ge=0)
    """A job that has its turn and waited for room for so many seconds has a host kept for it."""


def label_of(name: str) -> str:
    """The label that ``[classes.NAME]`` stands for."""
    if name == "default":
        return OUR_LABEL
    return name if name == OUR_LABEL or name.startswith(OUR_LABEL + "-") else f"{OUR_LABEL}-{name}"


def sharing_of(section: SharingSection, classes: Mapping[str, MachineClass], source: str) -> Sharing:
    """As the control plane takes it.  Raises ConfigurationError for a name that names nothing."""
    for repo in section.repositories:
        owner, slash, name = repo.partition("/")
        if not (slash and _OWNER.fullmatch(owner) and _NAME.fullmatch(name)):
            raise _refused(
                source, "repositories", repo, "a repository is owner/name", f'Write "OWNER/{name or owner}".'
            )
    for owner in section.organisations:
        if not _OWNER.fullmatch(owner):
            raise _refused(source, "organisations", owner, "no organisation has such a name", "Write its login.")
    for name in section.classes:
        if match_labels([label_of(name)], classes).machine is None:
            near = difflib.get_close_matches(label_of(name), classes, n=1)
            known = ", ".join(sorted(classes))
            remedy = f"Did you mean {near[0]}?" if near else f"There are: {known}."
            raise _refused(source, "classes", name, "no class has this name", remedy)
    return Sharing(
        repository=_share(section.repository),
        organisation=_share(section.organisation),
        repositories={name.lower(): _share(share) for name, share in section.repositories.items()},
        organisations={name.lower(): _share(share) for name, share in section.organisations.items()},
        classes={label_of(name): _share(share) for name, share in section.classes.items()},
        ageing_s=section.ageing_s,
        reserve_s=section.reserve_s,
    )


def _share(section: ShareSection) -> Share:
    return msgspec.convert(section.model_dump(), Share)


def _refused(source: str, table: str, name: str, why: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f'{source}: sharing.{table}."{name}": {why}', code="config-invalid", remedy=remedy)
