"""What verifying a ledger comes to: findings, each with its place, and what was seen on the way."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal[
    "edited",  # a record is another than the one that the next record names
    "removed",  # records are missing in the middle
    "reordered",  # a record stands in another place
    "repeated",  # a record stands there twice
    "unreadable",  # a line is no record
    "cut-off",  # records that a checkpoint covers are missing at the end
    "rewritten",  # records fit one another, and not the root that the host signed
    "gap",  # records never came from the host; noticed when they should have
    "checkpoint",  # a checkpoint can't be read, isn't signed by the host, or two of them differ
    "elsewhere",  # no checkpoint of this ledger was kept where one was looked for
    "unsigned",  # records are older than a checkpoint takes, and none covers them
    "key",  # the host's key isn't the pinned one, or not one of the configured ones
    "early",  # records were deleted before their time
    "index",  # the search engine's file isn't what the lines say
]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """``seq`` to ``last`` are the records that it is about, where it is about any; ``line`` counts from 1 in ``file``."""

    kind: Kind
    text: str
    file: str = ""
    line: int = 0
    seq: int = 0
    last: int = 0


class Report(msgspec.Struct, omit_defaults=True):
    """Of one ledger.  It is whole where ``findings`` is empty; ``notes`` say what a person may want to know."""

    ledger: str
    host: str
    key: str = ""
    first: int = 0
    last: int = 0
    records: int = 0
    """That were read."""
    deleted: int = 0
    """By retention; their proof is there."""
    checkpoints: int = 0
    """That were verified against the tree."""
    signed: int = 0
    """Number of the last record that a verified checkpoint covers."""
    elsewhere: int = 0
    """Number of the last record that a checkpoint covers that was kept elsewhere."""
    findings: list[Finding] = []
    notes: list[str] = []

    @property
    def intact(self) -> bool:
        return not self.findings
