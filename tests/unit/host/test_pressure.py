from __future__ import annotations

import pytest

from orchestrator.host.pool_plan import Memory
from orchestrator.host.pressure import look

PSI = "some avg10={} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


@pytest.mark.parametrize(
    ("available", "stalled", "found"),
    [
        (50, "0.00", Memory(tight=False, roomy=True)),
        (7, "0.00", Memory(tight=False, roomy=False)),
        (4, "0.00", Memory(tight=True, roomy=False)),
        (50, "3.10", Memory(tight=False, roomy=False)),
        (50, "12.00", Memory(tight=True, roomy=False)),
    ],
)
def test_both_figures_count(tmp_path, available, stalled, found):
    (tmp_path / "meminfo").write_text(f"MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: {available * 10} kB\n")
    (tmp_path / "memory").write_text(PSI.format(stalled))
    assert look(tmp_path / "meminfo", tmp_path / "memory") == found


def test_a_kernel_without_stall_figures_is_judged_by_what_is_available(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 500 kB\n")
    assert look(tmp_path / "meminfo", tmp_path / "none") == Memory(tight=False, roomy=True)


def test_this_kernels_own_files_can_be_read():
    assert isinstance(look(), Memory)
