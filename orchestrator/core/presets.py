"""Presets: named, versioned lists of the hosts that a tool needs, each entry with the source that says so.

The data stands in `policies/presets`; `policies.load_presets` reads it.  A preset whose hosts depend on how the image's
package manager is set up (``from_image``) gets the rest of them from the image: `Image.presets` in
`orchestrator.core.wire`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from orchestrator.core.errors import ConfigurationError
from orchestrator.core.host_pattern import HostProblem, read_name
from orchestrator.core.policy import HTTPS, Rule

HazardKind = Literal["doh", "tunnel", "drop", "multi_tenant"]
SuffixKind = Literal["icann", "private", ""]

IMAGE_HOSTS_LIMIT = 64


class PolicyTest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What must hold of a policy: reaching ``host`` (a name) or ``address`` on ``port`` is allowed, or blocked."""

    expect: Literal["allow", "block"]
    host: str = ""
    address: str = ""
    port: int = 443
    line: int = 1
    column: int = 1


class PresetEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exactly one of ``host`` and ``cidr`` is set.  ``source``: the page, issue or document that names it."""

    source: str
    host: str = ""
    cidr: str = ""
    ports: tuple[int, ...] = HTTPS
    comment: str = ""
    multi_tenant: bool = False
    verified: bool = True
    """False where the source is experience and no document."""


class Preset(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    version: int
    description: str
    entries: tuple[PresetEntry, ...]
    tests: tuple[PolicyTest, ...] = ()
    builtin: bool = False
    """In force in every policy, in every phase."""
    from_image: bool = False
    aka: tuple[str, ...] = ()
    """What people also call it."""

    def rules(self, image_hosts: Iterable[str] = (), *, origin: str = "") -> tuple[Rule, ...]:
        """The preset as allow rules, with ``image_hosts`` (names) after its own entries.

        Raises ConfigurationError where an image's host isn't a name, or where there are too many of them.
        """
        kind = "builtin" if self.builtin else "preset"
        stem = f"{kind}/{self.name}@{self.version}"
        where = f"preset {self.name}, version {self.version}" + (f"; {origin}" if origin else "")
        own = tuple(
            Rule(
                id=f"{stem}#{number}",
                host=entry.host,
                cidr=entry.cidr,
                ports=entry.ports,
                origin=where,
                comment=entry.comment,
                multi_tenant=entry.multi_tenant,
            )
            for number, entry in enumerate(self.entries, start=1)
        )
        if not self.from_image:
            return own
        read = (
            Rule(id=f"{stem}#image-{number}", host=host, origin=f"{where}; read off the image")
            for number, host in enumerate(_image_names(self.name, image_hosts), start=1)
        )
        return (*own, *read)


class Hazard(msgspec.Struct, frozen=True):
    """Hosts that undo a policy when they are allowed without thought."""

    host: str
    kind: HazardKind
    why: str


class Presets(msgspec.Struct, frozen=True):
    """All presets of this release, and what a policy's entries are judged by."""

    by_name: Mapping[str, Preset]
    hazards: tuple[Hazard, ...]
    suffix: Callable[[str], SuffixKind]
    """Which section of the Public Suffix List a name stands in as a suffix; empty for none."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.by_name))

    @property
    def aka(self) -> dict[str, str]:
        return {word: preset.name for preset in self.by_name.values() for word in preset.aka}

    @property
    def builtin(self) -> Preset:
        """The baseline: what every runner needs to get and do a job."""
        return next(preset for preset in self.by_name.values() if preset.builtin)


def _image_names(preset: str, hosts: Iterable[str]) -> tuple[str, ...]:
    """A host builds its own images, yet a pattern or a list without end has no business in one."""
    names: dict[str, None] = {}
    for host in hosts:
        try:
            names[read_name(host)] = None
        except HostProblem as problem:
            raise ConfigurationError(
                f"the image's list for preset {preset} can't be used: {problem.message}",
                code="image-preset-invalid",
                remedy="build the image again: ironcd image build",
            ) from problem
    if len(names) > IMAGE_HOSTS_LIMIT:
        raise ConfigurationError(
            f"the image's list for preset {preset} has {len(names)} hosts, and the limit is {IMAGE_HOSTS_LIMIT}",
            code="image-preset-invalid",
            remedy="build the image again: ironcd image build",
        )
    return tuple(names)
