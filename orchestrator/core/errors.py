"""One tree of errors; each carries a code, a remedy, and the page that explains it.

IronCDError
├── UserError           what was asked for can't be done as asked (exit status 2)
│   ├── ConfigurationError
│   ├── PolicyError     one thing in a policy file was refused; has line and column
│   └── PolicyErrors    all that is wrong in a policy file
└── OperationalError    the machine or a service stands in the way (exit status 1)
    ├── GitHubError     GitHub refused, or can't be reached
    ├── HostError       libvirt, nftables, the image or the disk
    └── StoreError      Redis

The CLI, the API and the record of a job show the same three fields.
"""

from __future__ import annotations

from collections.abc import Iterable

DOCS = "docs/operations/errors.md"


class IronCDError(Exception):
    """Base of all.  ``code`` is stable and greppable, ``remedy`` says what to do about it."""

    exit_status = 1

    def __init__(self, message: str, *, code: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.remedy = remedy

    @property
    def link(self) -> str:
        return f"{DOCS}#{self.code}"

    def as_dict(self) -> dict[str, str]:
        return {"error": self.message, "code": self.code, "remedy": self.remedy, "link": self.link}


class UserError(IronCDError):
    exit_status = 2


class ConfigurationError(UserError):
    pass


class PolicyError(UserError):
    """A policy was refused at ``line``, ``column`` (both from 1) of ``source``."""

    def __init__(self, message: str, *, remedy: str, source: str, line: int, column: int) -> None:
        super().__init__(f"{source}:{line}:{column}: {message}", code="policy-invalid", remedy=remedy)
        self.source = source
        self.line = line
        self.column = column


class PolicyErrors(UserError):
    """All that is wrong with a policy, in the order of its lines: each a `PolicyError` with its own remedy."""

    def __init__(self, errors: Iterable[PolicyError]) -> None:
        self.errors = tuple(sorted(errors, key=lambda e: (e.source, e.line, e.column)))
        if not self.errors:
            raise ValueError("no errors to report")
        lines = [f"{error.message}\n  {error.remedy}" for error in self.errors]
        one = len(self.errors) == 1
        super().__init__(
            self.errors[0].message if one else "\n".join(lines),
            code="policy-invalid",
            remedy=self.errors[0].remedy if one else f"correct these {len(self.errors)} places; each says how",
        )

    def as_list(self) -> list[dict[str, str | int]]:
        """One entry for each error, for programs: source, line and column beside what `as_dict` has."""
        return [{**e.as_dict(), "source": e.source, "line": e.line, "column": e.column} for e in self.errors]


class OperationalError(IronCDError):
    pass


class GitHubError(OperationalError):
    pass


class HostError(OperationalError):
    pass


class StoreError(OperationalError):
    pass
