"""What hosts and control planes of two versions say to each other is understood on either side."""

from __future__ import annotations

import msgspec

from orchestrator.core.machine import MachineClass
from orchestrator.core.wire import Desired, Observed, ObservedRunner, ObservedTemplate, ObservedWarm


def test_what_a_version_without_templates_said_is_still_read() -> None:
    desired = msgspec.json.decode(b'{"host": "h1", "generation": 3, "runners": []}', type=Desired)
    assert desired.classes == ()
    capacity = b'{"vcpus": 2, "memory_mib": 1024, "disk_gib": 9}'
    raw = b'{"host": "h1", "boot": "b", "at": 1.0, "capacity": %b, "accelerator": "kvm", "generation": 3}' % capacity
    observed = msgspec.json.decode(raw, type=Observed)
    assert (observed.templates, observed.warm) == ((), ())
    assert msgspec.json.decode(b'{"id": "X", "vm": "running"}', type=ObservedRunner).start == ""
    assert msgspec.json.decode(b'{"name": "ironcd", "vcpus": 4}', type=MachineClass).start == "clone"


def test_templates_and_waiting_machines_come_across_whole() -> None:
    template = ObservedTemplate("a" * 64, ("ironcd",), "b" * 64, "failed", 12.5, 300 << 20, 2, "it didn't boot")
    warm = ObservedWarm("01J" + "0" * 23, "ironcd", 13.0)
    assert msgspec.json.decode(msgspec.json.encode(template), type=ObservedTemplate) == template
    assert msgspec.json.decode(msgspec.json.encode(warm), type=ObservedWarm) == warm
