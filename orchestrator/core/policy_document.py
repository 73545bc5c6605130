"""What a policy file says, once read: `PolicyFile`, a value that knows its places but not its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from orchestrator.core.policy import HTTPS, Action, Mode, Private, Profile
from orchestrator.core.presets import PolicyTest, Preset

Scope = Literal["repo", "org"]
RepositoriesMay = Literal["narrow", "widen"]
RepositoryFile = Literal["required", "optional"]

STARTER = """\
mode: enforce
allow:
  - preset: node
  - host: api.example.com
"""


class Entry(msgspec.Struct, frozen=True):
    """One line of a file's lists.  Exactly one of ``preset``, ``host`` and ``cidr`` is set."""

    number: int
    """Counts the entries of the file from 1, in the order of its lines; a rule's id has it."""
    action: Action
    line: int
    column: int
    preset: Preset | None = None
    host: str = ""
    cidr: str = ""
    ports: tuple[int, ...] = HTTPS
    comment: str = ""
    multi_tenant: bool = False


class PolicyFile(msgspec.Struct, frozen=True):
    """What one file says.  None where it says nothing, which isn't the same as an empty list."""

    source: str
    scope: Scope
    mode: Mode | None = None
    profile: Profile | None = None
    allow: tuple[Entry, ...] | None = None
    deny: tuple[Entry, ...] = ()
    expect: tuple[Entry, ...] = ()
    private: tuple[Private, ...] = ()
    tests: tuple[PolicyTest, ...] = ()
    allow_ech: bool = False
    repositories_may: RepositoriesMay = "narrow"
    repository_file: RepositoryFile = "required"
    places: Mapping[str, tuple[int, int]] = {}
    """Line and column of each top-level value."""
    warnings: tuple[str, ...] = ()
    """``source:line:column: what`` for what is accepted and yet odd."""
