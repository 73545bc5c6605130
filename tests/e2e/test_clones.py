"""Two machines of one template: each is a machine of its own, and neither sees what the other does.

They start one after the other on the template that the main job's machine is cloned from.  What a machine is, it prints to
its console; the clock is told by when its lines arrive.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.machine import MachineClass
from orchestrator.core.names import names_of
from orchestrator.host import seed
from orchestrator.host import template_files as files
from orchestrator.host.waiting import PREPARED_WITHIN_S
from orchestrator.surface.demo.lab import CACHE
from orchestrator.surface.demo.scenario import CLASS
from tests.e2e.clone_lab import CLONE_S, CloneLab, with_facts

pytestmark = [pytest.mark.e2e, pytest.mark.real]

TOKENS = re.compile(
    rb"gh[opsur]_[A-Za-z0-9]{36}|eyJ[\w\-]{16,}\.[\w\-]{16,}\.[\w\-]{16,}|\.credentials_rsaparams\"\s*:\s*\"ey"
)
_PIECE = 16 << 20
_LAP = 8192


@dataclass
class Clone:
    ulid: str
    facts: dict[str, Any]
    later: dict[str, Any]
    delays_s: list[float] = field(default_factory=list)
    """How much later than the guest's time each of its lines was seen."""
    monotonic: list[int] = field(default_factory=list)


@dataclass
class Clones:
    lab: CloneLab
    folder: Path
    before: files.Content
    both: list[Clone]
    waiting: Waiting
    waited: Clone
    """A machine that waited and was given a job, after the others had ended."""


@dataclass
class Waiting:
    """What there was of it before its job: where its link was, who knew of it, and what its seed held."""

    is_in_namespace: bool
    has_rules: bool
    seed: bytes
    state: str | None


@pytest.fixture(scope="module")
def clones(image: None) -> Iterator[Clones]:
    patch = pytest.MonkeyPatch()
    patch.setattr(seed, "user_data", with_facts(seed.user_data))
    size = {name: CLASS[name] for name in ("image", "vcpus", "memory_mib", "disk_gib")}
    lab = CloneLab(CACHE, MachineClass("ironcd", **size), CACHE / "templates")
    try:
        lab.ready()
        (template,) = [seen for seen in lab.agent.observe().templates if seen.classes]
        folder = lab.paths.templates / template.key
        before = files.digest_of(folder / files.RAM)
        both = [_lived(lab, lab.wish(), "clone") for _ in range(2)]
        for clone in both:
            lab.end(clone.ulid)
        waiting, waited = _waited(lab)
        yield Clones(lab, folder, before, both, waiting, waited)
    finally:
        lab.close()
        patch.undo()


def _waited(lab: CloneLab) -> tuple[Waiting, Clone]:
    """Have a machine wait, look at it, and give it a job by its own name."""
    lab.keep_waiting(1)
    lab.until(lambda: lab.agent.observe().warm, PREPARED_WITHIN_S + CLONE_S)
    (seen,) = lab.agent.observe().warm
    names = names_of(seen.id)
    waiting = Waiting(
        is_in_namespace=names.tap in lab.parts.wires.in_namespace(),
        has_rules=names.tap in lab.parts.wall.present().taps,
        seed=(lab.paths.seeds / names.seed).read_bytes(),
        state=lab.parts.hypervisor.state(names.domain),
    )
    return waiting, _lived(lab, lab.wish(seen.id), "warm")


def _lived(lab: CloneLab, ulid: str, start: str) -> Clone:
    """Hear out the machine that was wished for; it goes on running."""
    lab.until(lambda: lab.said(ulid, "FACTS"), CLONE_S)
    delays, monotonic = [], []
    seen = 0
    deadline = time.monotonic() + 300
    while seen < 20 and time.monotonic() < deadline:
        for line in lab.said(ulid, "CLOCK")[seen:]:
            at, ticks = line.split()
            delays.append(time.time() - int(at) / 1e9)
            monotonic.append(int(ticks))
            seen += 1
        time.sleep(0.001)
    lab.until(lambda: lab.said(ulid, "LATER"), CLONE_S)
    assert lab.seen(ulid).start == start, lab.seen(ulid)
    facts, later = (json.loads(lab.said(ulid, word)[0]) for word in ("FACTS", "LATER"))
    return Clone(ulid, facts, later, delays, monotonic)


def test_each_is_a_machine_of_its_own(clones):
    one, other = (clone.facts for clone in clones.both)
    for name in ("machine_id", "boot_id", "hostname", "random", "uuid", "instance"):
        assert one[name] != other[name], name
    for clone in clones.both:
        assert re.fullmatch("[0-9a-f]{32}", clone.facts["machine_id"])
        assert clone.facts["hostname"] == clone.facts["instance"] == names_of(clone.ulid).domain
        assert clone.later == {"journal": [clone.facts["machine_id"]], "pid1": clone.facts["machine_id"]}
        assert clone.facts["ssh"] == [], "the image has no SSH server, so no key may be there"


def test_each_has_its_own_link_with_its_own_address(clones):
    addresses = []
    for index, clone in enumerate(clones.both):
        link = clone.facts["link"]
        (address,) = [found["local"] for found in link["addr_info"] if found["family"] == "inet"]
        gateway = f"10.201.0.{2 * index}"
        assert (link["address"], link["operstate"]) == ("02:00:00:00:00:01", "UP")
        assert clone.facts["route"].startswith(f"default via {gateway} ")
        assert clone.facts["resolv"] == f"nameserver {gateway}"
        addresses.append(address)
    assert addresses == ["10.201.0.1", "10.201.0.3"]


def test_a_machine_that_waits_has_no_network_and_no_credential(clones):
    waiting = clones.waiting
    assert waiting.state == "running"
    assert not waiting.is_in_namespace
    assert not waiting.has_rules
    assert waiting.seed
    assert not any(waiting.seed)


def test_one_that_waited_is_a_machine_of_its_own_like_any_other(clones):
    waited = clones.waited
    for name in ("machine_id", "boot_id", "hostname", "random", "uuid", "instance"):
        assert waited.facts[name] not in [clone.facts[name] for clone in clones.both], name
    assert waited.facts["hostname"] == waited.facts["instance"] == names_of(waited.ulid).domain
    assert waited.later == {"journal": [waited.facts["machine_id"]], "pid1": waited.facts["machine_id"]}
    assert waited.facts["link"]["operstate"] == "UP"
    assert -0.1 < min(waited.delays_s) < 0.1, waited.delays_s
    assert waited.monotonic == sorted(waited.monotonic)


def test_a_machine_that_waits_has_rehearsed_and_nothing_is_left_of_that(clones):
    """What a rehearsal makes up is named after it; no file and no mount is."""
    console = clones.lab.console(clones.waited.ulid)
    assert re.search(r"rehearsed a job's start\s*$", console, re.MULTILINE), console
    assert clones.waited.facts["rehearsed"] == [False, ""]
    assert clones.both[0].facts["rehearsed"] == [False, ""]


def test_its_clock_is_right_and_goes_forward(clones):
    """A line is seen some time after it was written: the quickest tells how far the clock is off."""
    for clone in clones.both:
        assert len(clone.delays_s) == 20
        assert -0.1 < min(clone.delays_s) < 0.1, clone.delays_s
        assert clone.monotonic == sorted(clone.monotonic)


def test_what_one_writes_no_other_sees(clones):
    """Into memory, onto the disk, and over a file that the template had in its page cache."""
    for clone in clones.both:
        (mark,) = re.findall("WRITTEN-BY-[a-z0-9-]+", clone.facts["image"])
        assert mark == "WRITTEN-BY-" + clone.facts["hostname"]
    assert files.digest_of(clones.folder / files.RAM) == clones.before
    assert not _found(clones.folder / files.RAM, re.compile(b"WRITTEN-BY-ironcd-"))
    assert not _found(clones.folder / files.DISK, re.compile(b"WRITTEN-BY-ironcd-"))


def test_the_templates_memory_holds_no_secret(clones):
    ram = clones.folder / files.RAM
    digest = (CACHE / "images" / "simulated").resolve().name
    assert _found(ram, re.compile(digest.encode())), "the search finds what is there"
    assert _found(ram, TOKENS) == []
    needles = [jit.encode() for jit in clones.lab.jits] + [
        jit[len(jit) // 2 :][:96].encode() for jit in clones.lab.jits
    ]
    names = [names_of(clone.ulid).domain.encode() for clone in clones.both]
    assert _found(ram, re.compile(b"|".join(map(re.escape, needles + names)))) == []
    assert _found(ram, re.compile(rb"option dhcp-lease-time|ADDRESS=10\.201\.")) == []


def test_the_search_finds_what_it_looks_for(tmp_path):
    """In a file that is mostly holes, on both sides of the pieces' border."""
    planted = (b"ghs_" + b"a" * 36, b"eyJ" + b".".join([b"b" * 40] * 3), b'.credentials_rsaparams": "ey')
    for place in (4096 * 300, (1 << 20) - 10, (64 << 20) - 4096):
        for token in planted:
            path = tmp_path / "ram"
            path.unlink(missing_ok=True)
            with path.open("wb") as file:
                file.truncate(64 << 20)
                file.seek(place)
                file.write(token)
            assert _found(path, TOKENS) == [token]


def _found(path: Path, pattern: re.Pattern[bytes]) -> list[bytes]:
    """What ``pattern`` matches in a file that is large and mostly holes."""
    found: list[bytes] = []
    rest = b""

    def look(_place: int, data: bytes) -> None:
        nonlocal rest
        found.extend(pattern.findall(rest + data))
        rest = data[-_LAP:]

    files.digest_of(path, look)
    return found
