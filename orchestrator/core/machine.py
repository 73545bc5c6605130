"""Classes of machine, what a host has room for, and which class a job's labels ask for.

A label ``ironcd`` asks for the default class, ``ironcd-4cpu-16gb`` for a size, and any other ``ironcd-NAME`` for the
class of that name in the configuration.  Labels beside it (``self-hosted``, ``linux``, ``x64``) are GitHub's own and
pass, and so does ``run-NUMBER``, with a word behind it or none, which a workflow makes from its run's id: the runner for it serves no
other job that asks for such a label.  A job with no label of ours isn't ours.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

OUR_LABEL = "ironcd"
PLAIN_LABELS = frozenset({"self-hosted", "linux", "x64"})

_RUN = re.compile(r"run-\d{1,20}(-[a-z0-9_-]{1,40})?")
_LIKE_A_SIZE = re.compile(r"iron-?cd\D{0,3}?(\d{1,3})\s*[-_]?v?(?:cpus?|cores?)[-_](\d{1,4})\s*[-_]?(?:gb|gib|g)")
_SIZE = re.compile(r"ironcd-(\d{1,3})cpu-(\d{1,4})gb")


class MachineClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A size of machine: vcpus (count), memory (MiB), disk (GiB), gpus (count), lifetime (seconds)."""

    name: str
    vcpus: int = 2
    """Virtual processors; a host never gives out more than it has."""
    memory_mib: int = 4096
    """Memory, in MiB."""
    disk_gib: int = 20
    """Size of the disk, in GiB; it grows as it is written."""
    gpus: int = 0
    """Whole GPUs, handed through to the machine."""
    lifetime_s: int = 6 * 3600
    """Seconds from the start of its job after which the machine is ended, whatever it does."""
    image: str = "default"
    """Name of the image that its disk starts from: `ironcd image list`."""
    start: Literal["clone", "cold"] = "clone"
    """`clone` starts a machine from a template that has booted already; `cold` boots each one, and shares no memory page."""
    warm: int = 0
    """Machines of this class that each host keeps waiting at the gate, as far as it has room."""


class Capacity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a host can give to VMs in all (its reserve already taken off)."""

    vcpus: int
    memory_mib: int
    disk_gib: int
    gpus: int = 0


class Match(msgspec.Struct, frozen=True):
    """What labels ask for.  ``machine`` is set where we serve them; else ``reason`` says why not.

    ``ours`` is True where a label names IronCD, whether or not a class fits.
    """

    ours: bool
    machine: MachineClass | None
    reason: str


def match_labels(labels: Sequence[str], classes: Mapping[str, MachineClass]) -> Match:
    """Which class of ``classes`` (by label, ``ironcd`` being the default one) the labels of a job ask for."""
    lowered = [label.lower() for label in labels]
    wanted = [label for label in lowered if label == OUR_LABEL or label.startswith(OUR_LABEL + "-")]
    if not wanted:
        near = _nearest_of(lowered, classes)
        return Match(
            ours=False, machine=None, reason="no label of ours" + (f"; the nearest is {near!r}" if near else "")
        )
    others = [label for label in lowered if label not in wanted and not _passes(label)]
    if others:
        return Match(ours=True, machine=None, reason=f"label {others[0]!r} isn't one that IronCD's runners have")
    named = [label for label in wanted if label != OUR_LABEL]
    if len(named) > 1:
        return Match(ours=True, machine=None, reason=f"labels {named[0]!r} and {named[1]!r} name two classes")
    label = named[0] if named else OUR_LABEL
    known = classes.get(label)
    if known is not None:
        return Match(ours=True, machine=known, reason=f"class {label!r}")
    sized = _sized(label, classes.get(OUR_LABEL))
    if sized is not None:
        return Match(ours=True, machine=sized, reason=f"size {label!r}")
    near = _nearest(label, classes)
    hint = f"; the nearest is {near!r}" if near else ""
    return Match(ours=True, machine=None, reason=f"no class is called {label!r}{hint}")


def _passes(label: str) -> bool:
    return label in PLAIN_LABELS or _RUN.fullmatch(label) is not None


def _nearest(label: str, classes: Mapping[str, MachineClass]) -> str:
    """The label that was perhaps meant; empty where none is like it."""
    size = _LIKE_A_SIZE.fullmatch(label)
    if size is not None and int(size[1]) and int(size[2]):
        return f"{OUR_LABEL}-{int(size[1])}cpu-{int(size[2])}gb"
    return next(iter(difflib.get_close_matches(label, [OUR_LABEL, *classes], n=1, cutoff=0.75)), "")


def _nearest_of(labels: Sequence[str], classes: Mapping[str, MachineClass]) -> str:
    others = [label for label in labels if label not in PLAIN_LABELS]
    return next((near for label in others[:10] if (near := _nearest(label[:64], classes))), "")


def _sized(label: str, base: MachineClass | None) -> MachineClass | None:
    match = _SIZE.fullmatch(label)
    if match is None or base is None:
        return None
    vcpus, gib = int(match[1]), int(match[2])
    if vcpus < 1 or gib < 1:
        return None
    return msgspec.structs.replace(base, name=label, vcpus=vcpus, memory_mib=gib * 1024)
