"""One tree of errors; each carries a code, a remedy, and the page that explains it.

IronCDError
├── UserError           what was asked for can't be done as asked (exit status 2)
│   ├── ConfigurationError
│   └── PolicyError     a policy file was refused; has line and column
└── OperationalError    the machine or a service stands in the way (exit status 1)
    ├── GitHubError     GitHub refused, or can't be reached
    ├── HostError       libvirt, nftables, the image or the disk
    └── StoreError      Redis

The CLI, the API and the record of a job show the same three fields.
"""

from __future__ import annotations

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


class OperationalError(IronCDError):
    pass


class GitHubError(OperationalError):
    pass


class HostError(OperationalError):
    pass


class StoreError(OperationalError):
    pass
