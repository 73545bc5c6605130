"""What holds for a job: the baseline, the organisation's policy and the repository's, made into one `Policy`.

- The baseline (what every runner needs) is always in it, and nothing denies it.
- No file at all: refused, unless the organisation's policy says that it stands in (``repository_file: optional``).
- A repository's file under an organisation's: its ``allow`` list replaces the organisation's and must lie within it
  (``repositories_may: narrow``), or is added to it (``widen``).  Without an ``allow`` list the organisation's holds.
- ``deny`` and ``expect`` of both hold.  The stricter mode and profile of both hold.  Only the organisation lifts the
  floor.
- The tests of the repository's file hold, and the organisation's tests that expect a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network

import msgspec

from orchestrator.core.errors import PolicyError, PolicyErrors, UserError
from orchestrator.core.flow import Flow
from orchestrator.core.hazards import floor_problem
from orchestrator.core.host_pattern import CoverIndex
from orchestrator.core.policy import Decision, Mode, Policy, Private, Profile, Rule, compile_policy, decide
from orchestrator.core.policy_document import STARTER, Entry, PolicyFile
from orchestrator.core.presets import PolicyTest, Preset

ImagePresets = Mapping[str, Sequence[str]]
_WANT_OF_A_RULE = frozenset({"not_allowed", "missing_sni"})


def baseline_policy(baseline: Preset) -> Policy:
    """The sealed phase's policy: ``enforce``, and nothing but what a runner needs to get its job."""
    return Policy(mode="enforce", rules=baseline.rules())


def effective_policy(
    org: PolicyFile | None,
    repo: PolicyFile | None,
    baseline: Preset,
    image_presets: ImagePresets | None = None,
) -> Policy:
    """The policy of a job in a repository with file ``repo`` in an organisation with file ``org``.

    Raises `UserError` ``policy-missing`` where there is no policy, and `PolicyErrors` where the repository's file asks
    for what the organisation doesn't allow, or a test doesn't hold.
    """
    images = image_presets or {}
    if repo is None:
        if org is None or org.repository_file == "required":
            raise _missing(org)
        policy = _policy([org], _rules(org, org.allow or (), images), baseline, private=org.private)
        _raise(_test_errors(org, policy, org.tests))
        return policy
    if org is None:
        policy = _policy([repo], _rules(repo, repo.allow or (), images), baseline, private=())
        _raise([*_range_errors(repo, policy.private), *_test_errors(repo, policy, repo.tests)])
        return policy
    return _under_organisation(org, repo, baseline, images)


def check_own_tests(file: PolicyFile, baseline: Preset, image_presets: ImagePresets | None) -> PolicyFile:
    """``file``, when its tests hold for it alone.  Raises `PolicyErrors`.

    A test that the image's hosts (``image_presets`` None) or the organisation's list (no ``allow`` in a repository's
    file) could still make hold becomes a warning.
    """
    policy = _policy([file], _rules(file, file.allow or (), image_presets or {}), baseline, private=file.private)
    errors = _test_errors(file, policy, file.tests)
    failed = run_tests(policy, file.tests)
    image_open = image_presets is None and any(e.preset and e.preset.from_image for e in file.allow or ())
    list_open = file.scope == "repo" and file.allow is None
    if not (image_open or list_open):
        _raise(errors)
        return file
    may_yet = {(test.line, test.column) for test, decision in failed if decision.reason in _WANT_OF_A_RULE}
    _raise([error for error in errors if (error.line, error.column) not in may_yet])
    adds = "the organisation's policy" if list_open else "the image"
    unsure = tuple(f"{error.message}, unless {adds} adds it" for error in errors)
    return msgspec.structs.replace(file, warnings=file.warnings + unsure)


def run_tests(policy: Policy, tests: Iterable[PolicyTest]) -> list[tuple[PolicyTest, Decision]]:
    """The tests that don't hold for ``policy``, each with what was decided.  A would-block counts as a block."""
    compiled = compile_policy(policy)
    failed = []
    for test in tests:
        decision = decide(compiled, _flow(test))
        if (decision.verdict == "allowed") != (test.expect == "allow"):
            failed.append((test, decision))
    return failed


def _under_organisation(org: PolicyFile, repo: PolicyFile, baseline: Preset, images: ImagePresets) -> Policy:
    ceiling = _rules(org, org.allow or (), images)
    errors = _loosened(org, repo)
    if repo.allow is None:
        rules = ceiling
    elif org.repositories_may == "widen":
        rules = [*ceiling, *_rules(repo, repo.allow, images)]
    else:
        errors += _outside(repo, repo.allow, [*baseline.rules(), *ceiling], images)
        rules = _rules(repo, repo.allow, images)
    policy = _policy([org, repo], rules, baseline, private=org.private)
    errors += _range_errors(repo, policy.private)
    _raise(errors)
    blocks = [test for test in org.tests if test.expect == "block"]
    _raise([*_test_errors(org, policy, blocks), *_test_errors(repo, policy, repo.tests)])
    return policy


def _policy(files: list[PolicyFile], allow: list[Rule], baseline: Preset, *, private: tuple[Private, ...]) -> Policy:
    """``files`` are the organisation's and the repository's, or one of them."""
    last = files[-1]
    mode: Mode = last.mode or files[0].mode or "enforce"
    profile: Profile = last.profile or files[0].profile or "runner"
    closed = [_rule(file, entry) for file in files for entry in (*file.deny, *file.expect)]
    return Policy(
        mode=mode,
        rules=_once([*baseline.rules(), *allow, *closed]),
        profile=profile,
        private=private,
        allow_ech=all(file.allow_ech for file in files),
    )


def _rules(file: PolicyFile, entries: Iterable[Entry], images: ImagePresets) -> list[Rule]:
    return [rule for entry in entries for rule in _expanded(file, entry, images)]


def _expanded(file: PolicyFile, entry: Entry, images: ImagePresets) -> tuple[Rule, ...]:
    if entry.preset is None:
        return (_rule(file, entry),)
    return entry.preset.rules(images.get(entry.preset.name, ()), origin=f"{file.source}:{entry.line}")


def _rule(file: PolicyFile, entry: Entry) -> Rule:
    return Rule(
        id=f"{file.scope}#{entry.number}",
        action=entry.action,
        host=entry.host,
        cidr=entry.cidr,
        ports=entry.ports,
        origin=f"{file.source}:{entry.line}",
        comment=entry.comment,
        multi_tenant=entry.multi_tenant,
    )


def _once(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The first of each; the baseline's come first."""
    found: dict[tuple[str, str, str, tuple[int, ...]], Rule] = {}
    for rule in rules:
        found.setdefault((rule.action, rule.host, rule.cidr, rule.ports), rule)
    return tuple(found.values())


def _loosened(org: PolicyFile, repo: PolicyFile) -> list[PolicyError]:
    """Where the repository asks for a looser mode, profile or protocol than the organisation's."""
    asks = (
        ("mode", repo.mode == "warn" and org.mode != "warn", "mode: warn", "mode: enforce"),
        ("profile", repo.profile == "sandbox" and org.profile != "sandbox", "profile: sandbox", "profile: runner"),
        ("allow_ech", repo.allow_ech and not org.allow_ech, "allow_ech: true", "allow_ech: false"),
    )
    return [
        _error(
            repo,
            repo.places.get(key, (1, 1)),
            f"{asked} is looser than the organisation's policy ({org.source})",
            f"write {remedy}, or take it out; the organisation can write {asked} in its own",
        )
        for key, loose, asked, remedy in asks
        if loose
    ]


def _outside(
    repo: PolicyFile, entries: Iterable[Entry], ceiling: list[Rule], images: ImagePresets
) -> list[PolicyError]:
    """The repository's entries that the organisation's list doesn't take in."""
    within = _Ceiling(ceiling)
    errors = []
    for entry in entries:
        left = [rule for rule in _expanded(repo, entry, images) if not within.takes_in(rule)]
        if left:
            names = ", ".join(_subject(rule) for rule in left[:5]) + (", ..." if len(left) > 5 else "")
            preset = f"preset {entry.preset.name}: " if entry.preset else ""
            message = f"{preset}{names} isn't within what the organisation allows"
            remedy = "take it out, or ask for it in the organisation's policy (or for repositories_may: widen there)"
            errors.append(_error(repo, (entry.line, entry.column), message, remedy))
    return errors


class _Ceiling:
    """Allow rules, ready to be asked whether another lies within them."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._hosts = CoverIndex((rule.host, rule) for rule in rules if rule.host)
        self._ranges = [(IPv4Network(rule.cidr), set(rule.ports)) for rule in rules if rule.cidr]

    def takes_in(self, rule: Rule) -> bool:
        ports = set(rule.ports)
        if rule.host:
            return any(ports <= set(wide.ports) for wide in self._hosts.covering(rule.host))
        net = IPv4Network(rule.cidr)
        return any(net.subnet_of(wide) and ports <= open_ports for wide, open_ports in self._ranges)


def _range_errors(repo: PolicyFile, private: tuple[Private, ...]) -> list[PolicyError]:
    """The repository's ranges on a part of the floor that its organisation hasn't lifted."""
    lifted = tuple(entry.cidr for entry in private)
    return [
        _error(
            repo,
            (entry.line, entry.column),
            problem,
            f"take it out; only an organisation's policy can open it, with private: [{{cidr: {entry.cidr}, reason: ...}}]",
        )
        for entry in repo.allow or ()
        if entry.cidr and (problem := floor_problem(entry.cidr, lifted)) is not None
    ]


def _test_errors(file: PolicyFile, policy: Policy, tests: Iterable[PolicyTest]) -> list[PolicyError]:
    return [
        _error(
            file,
            (test.line, test.column),
            f"a test doesn't hold: {test.host or test.address} on port {test.port} is {_outcome(decision)}",
            f"expected: {test.expect}; change the test, or the rules",
        )
        for test, decision in run_tests(policy, tests)
    ]


def _outcome(decision: Decision) -> str:
    if decision.verdict == "allowed":
        return f"allowed by {decision.rule}"
    return f"blocked ({decision.reason}{' by ' + decision.rule if decision.rule else ''})"


def _flow(test: PolicyTest) -> Flow:
    if test.host:
        return Flow("tls", test.port, name=test.host)
    return Flow("tls" if test.port == 443 else "tcp", test.port, address=test.address)


def _subject(rule: Rule) -> str:
    return rule.host or f"{rule.cidr} ports {', '.join(map(str, rule.ports))}"


def _error(file: PolicyFile, place: tuple[int, int], message: str, remedy: str) -> PolicyError:
    return PolicyError(message, remedy=remedy, source=file.source, line=place[0], column=place[1])


def _raise(errors: Sequence[PolicyError]) -> None:
    if errors:
        raise PolicyErrors(errors)


def _missing(org: PolicyFile | None) -> UserError:
    # With the first line of the remedy it fits into a commit status, which has 140 characters.
    message = "no .ironcd/policy.yml on the default branch"
    if org is not None:
        message += f", and the organisation ({org.source}) requires one"
    start = "`mode: warn`" if org is None or org.mode == "warn" else "`mode: enforce`"
    return UserError(
        message,
        code="policy-missing",
        remedy=f"commit one that says {start} to start\n"
        f"docs/reference/policy.md has the format, for example:\n{STARTER}"
        "An organisation can have its own policy stand in: repository_file: optional",
    )
