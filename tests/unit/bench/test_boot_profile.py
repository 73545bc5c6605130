"""What is read off a machine that tells of its own boot."""

from __future__ import annotations

import pytest

from bench import boot_profile

SAID = """##[group]Run
30.50 20.00
1030.500000000
==kernel
[    0.000000] Linux version 6
[    0.500000] clocksource: slow one
[    0.550000] Run /init as init process
[    3.000000] EXT4-fs (vda): mounted
==manager
UserspaceTimestampMonotonic=2000000
GeneratorsStartTimestampMonotonic=2500000
UnitsLoadFinishTimestampMonotonic=3000000
==stages
{"v1": {"init-local": {"start": 8.75, "finished": 9.0}, "init": {"start": 10.0},
 "modules-config": {"start": 13.0}, "modules-final": {"start": 14.0}, "stage": null}}

==units
Id=ironcd-guest.service
After=mount.service quick.service never.service late.service gone.service
InactiveExitTimestampMonotonic=6000000
ActiveEnterTimestampMonotonic=20000000

Id=mount.service
After=quick.service
InactiveExitTimestampMonotonic=4000000
ActiveEnterTimestampMonotonic=5500000

Id=quick.service
After=
InactiveExitTimestampMonotonic=3500000
ActiveEnterTimestampMonotonic=3550000

Id=never.service
InactiveExitTimestampMonotonic=0
ActiveEnterTimestampMonotonic=0

Id=late.service
InactiveExitTimestampMonotonic=7000000
ActiveEnterTimestampMonotonic=9000000
==end
##[endgroup]
"""
LOG = "".join(f"2026-11-24T10:00:30.0000000Z {line}\n" for line in SAID.splitlines())
HOST = {
    "chain_installed": 999.0, "guest_hello": 1008.0, "gate_opened": 1008.5, "jit_taken": 1015.0, "runner_started": 1015.5,
}  # fmt: skip


def test_one_thing_follows_the_other_without_a_gap():
    found = list(boot_profile.spans(boot_profile.read(LOG), HOST))
    assert [(span.at, span.took) for span in found] == [
        *((-1.0, 1.0), (0.0, 0.55), (0.55, 1.45), (2.0, 1.0), (3.0, 0.5)),
        *((3.5, 0.5), (4.0, 2.0), (6.0, 2.0), (8.0, 0.5)),
        *((8.5, 0.25), (8.75, 1.25), (10.0, 3.0), (13.0, 1.0), (14.0, 1.0), (15.0, 0.5)),
    ]
    assert [span.what for span in found[5:8]] == ["quick.service", "mount.service", "ironcd-guest.service"]


def test_what_a_unit_waited_for_is_what_was_ready_last_before_it():
    units = boot_profile.read(LOG).units
    chain = boot_profile.critical_chain(units, "ironcd-guest.service")
    assert [unit.name for unit in chain] == ["quick.service", "mount.service", "ironcd-guest.service"]


def test_where_the_kernel_was_silent_up_to_the_initrd():
    (found,) = boot_profile.silences(boot_profile.read(LOG))
    assert found == boot_profile.Span(0.0, 0.5, "clocksource: slow one")


def test_the_slow_units_come_longest_first():
    found = [(span.what, span.took) for span in boot_profile.slow_units(boot_profile.read(LOG))]
    assert found == [("ironcd-guest.service", 14.0), ("late.service", 2.0), ("mount.service", 1.5)]


@pytest.mark.parametrize("log", ["", LOG.replace("==units", "units"), LOG.partition("==end")[0]])
def test_a_log_without_the_answers_is_said(log):
    with pytest.raises(ValueError, match="doesn't hold"):
        boot_profile.read(log)
