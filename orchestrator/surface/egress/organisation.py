"""The organisation's policy file, changed in place: under a lock, validated as a whole, and replaced in one move.

The control plane reads the file anew at every look, so a change needs no restart: jobs that run get it within a second or
two, and their open connections that it forbids are ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import msgspec

from orchestrator.core.effective import ImagePresets, effective_policy, run_tests
from orchestrator.core.errors import ConfigurationError, OperationalError, PolicyErrors, UserError
from orchestrator.core.policy import Action, Mode, Policy
from orchestrator.core.policy_document import Entry, PolicyFile
from orchestrator.core.policy_edit import NewEntry, changed_as_meant, with_entry, with_mode, without_entry
from orchestrator.core.policy_file import read_policy
from orchestrator.core.presets import Presets
from orchestrator.surface.settings import Settings
from orchestrator.system.files import folder_locked, write_atomic


class Changed(msgspec.Struct, frozen=True):
    """``entry`` is the one that was added or removed, or that was there already where nothing changed."""

    changed: bool
    file: PolicyFile
    entry: Entry | None = None


class OrganisationFile:
    def __init__(self, path: Path, presets: Presets) -> None:
        self.path = path.resolve()
        self._presets = presets

    @classmethod
    def of(cls, settings: Settings, presets: Presets) -> OrganisationFile:
        """The file that the settings name.  Raises ConfigurationError where they name none."""
        path = settings.policy.organisation_file
        if path is None:
            raise ConfigurationError(
                "there is no organisation policy to read or to change",
                code="policy-none",
                remedy="Copy policies/default.yml to /etc/ironcd/policy.yml, look it through, and set "
                "policy.organisation_file to it.",
            )
        return cls(path, presets)

    def read(self) -> PolicyFile:
        """What the file says.  Raises UserError where it can't be read, or isn't accepted."""
        return self._parsed(self._text())

    def policy(self, images: ImagePresets | None = None) -> Policy:
        """Its rules as they hold for a repository without a file of its own, with the built-in ones and the image's."""
        return self._made(self.read(), images)

    def set_mode(self, mode: Mode) -> Changed:
        with self._locked():
            text = self._text()
            before = self._parsed(text)
            if before.mode == mode:
                return Changed(False, before)
            after = self._replace(text, lambda was: with_mode(was, mode), before, mode=mode)
        return Changed(True, after)

    def add(self, entry: NewEntry) -> Changed:
        """Add ``entry`` at the end of its list; nothing changes where the very same subject is in it already."""
        with self._locked():
            text = self._text()
            before = self._parsed(text)
            known = {found.number: _subject(found) for found in entries_of(before)}
            after = self._parsed(self._edited(text, lambda was: with_entry(was, entry), before))
            new = [found for found in entries_of(after) if _subject(found) not in known.values()]
            if not new:
                return Changed(False, before, _same(before, after, entry))
            self._replace(text, lambda was: with_entry(was, entry), before, added=entry)
        return Changed(True, after, new[0])

    def remove(self, rule_id: str) -> Changed:
        with self._locked():
            text = self._text()
            before = self._parsed(text)
            entry = self._entry_of(before, rule_id)
            edit = _without(entry.number)
            after = self._replace(text, edit, before, removed=entry.number)
        return Changed(True, after, entry)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with folder_locked(self.path.parent):
                yield
        except TimeoutError as error:
            raise OperationalError(
                f"another command is changing {self.path}", code="policy-busy", remedy="Try again in a moment."
            ) from error
        except OSError as error:
            self._unreadable(error)

    def _text(self) -> str:
        try:
            return self.path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._unreadable(error)

    def _unreadable(self, error: OSError | UnicodeDecodeError) -> NoReturn:
        why = error.strerror if isinstance(error, OSError) else "it isn't UTF-8"
        raise UserError(
            f"the organisation's policy {self.path} can't be used: {why}",
            code="policy-unreadable",
            remedy="Put the file there, and run the command as a user who may read and replace it.",
        ) from error

    def _parsed(self, text: str) -> PolicyFile:
        return read_policy(text, source=self.path.name, presets=self._presets, scope="org")

    def _made(self, file: PolicyFile, images: ImagePresets | None = None) -> Policy:
        """Without the file's tests, which `_edited` sees to: some need what only the image adds."""
        alone = msgspec.structs.replace(file, repository_file="optional", tests=())
        return effective_policy(alone, None, self._presets.builtin, images)

    def _edited(self, text: str, edit: Callable[[str], str], before: PolicyFile) -> str:
        """The edited text, if it is accepted and no test of the file fails that held before.  Raises UserError."""
        made = edit(text)
        try:
            after = self._parsed(made)
        except PolicyErrors as error:
            raise self._not_accepted(error.message, error.remedy) from error
        failed = self._failing(before)
        for test, decision in run_tests(self._made(after), after.tests):
            if (test.expect, test.host, test.address, test.port) not in failed:
                what = f"{test.host or test.address} on port {test.port} would be {decision.verdict}"
                message = f"a test doesn't hold: {what}, and line {test.line} expects: {test.expect}"
                raise self._not_accepted(message, "Change or remove the test first.")
        return made

    def _failing(self, file: PolicyFile) -> set[tuple[str, str, str, int]]:
        return {
            (test.expect, test.host, test.address, test.port) for test, _ in run_tests(self._made(file), file.tests)
        }

    def _not_accepted(self, why: str, remedy: str) -> UserError:
        message = f"{self.path} is left as it was, for this would not be accepted:\n{why}"
        remedy = remedy.replace("acknowledge: REASON", "--acknowledge REASON")
        return UserError(message, code="policy-invalid", remedy=remedy)

    def _replace(
        self,
        text: str,
        edit: Callable[[str], str],
        before: PolicyFile,
        *,
        added: NewEntry | None = None,
        removed: int = 0,
        mode: Mode | None = None,
    ) -> PolicyFile:
        made = self._edited(text, edit, before)
        after = self._parsed(made)
        changed_as_meant(before, after, added=added, removed=removed, mode=mode)
        stat = self.path.stat()
        write_atomic(self.path, made.encode("utf-8"), mode=stat.st_mode & 0o7777, owner=(stat.st_uid, stat.st_gid))
        return after

    def _entry_of(self, file: PolicyFile, rule_id: str) -> Entry:
        found = {f"org#{entry.number}": entry for entry in entries_of(file)}
        if rule_id in found:
            return found[rule_id]
        kind, _, rest = rule_id.partition("/")
        name = rest.partition("@")[0]
        if kind == "builtin":
            remedy = "It is what every runner needs to get and do a job, and can't be taken out."
        elif kind == "preset":
            owner = next((key for key, entry in found.items() if entry.preset and entry.preset.name == name), "")
            whole = f"{owner} brings the preset {name} in" if owner else f"the preset {name} isn't in this file"
            remedy = f"Presets come and go as a whole: {whole}. To block one host of it, add it with --deny."
        elif kind.startswith("repo#"):
            remedy = "It stands in a repository's .ironcd/policy.yml; change it there."
        else:
            remedy = "`ironcd egress list` shows the rules with their ids."
        raise UserError(f"{self.path.name} has no entry {rule_id}", code="rule-unknown", remedy=remedy)


def entries_of(file: PolicyFile) -> tuple[Entry, ...]:
    """All entries, in the order of their numbers."""
    return tuple(sorted((*(file.allow or ()), *file.deny, *file.expect), key=lambda entry: entry.number))


def said(entry: Entry) -> str:
    """What an entry is about, in a few words."""
    if entry.preset is not None:
        return f"preset {entry.preset.name}"
    return entry.host or f"{entry.cidr} ports {', '.join(map(str, entry.ports)) or 'all'}"


_Subject = tuple[Action, str, str, str, tuple[int, ...]]


def _subject(entry: Entry) -> _Subject:
    return (entry.action, entry.preset.name if entry.preset else "", entry.host, entry.cidr, entry.ports)


def _same(before: PolicyFile, after: PolicyFile, entry: NewEntry) -> Entry | None:
    """The entry of ``before`` that says what the last one of its list in ``after`` says again."""
    lists = {"allow": after.allow or (), "deny": after.deny, "expect": after.expect}
    again = lists[entry.action][-1]
    return next((found for found in entries_of(before) if _subject(found) == _subject(again)), None)


def _without(number: int) -> Callable[[str], str]:
    return lambda text: without_entry(text, number)
