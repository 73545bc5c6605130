"""What a seed draws before anything happens: the sizes of hosts, classes, quotas, shares, and what is set where."""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec

from orchestrator.control.settings import ControlSettings
from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.sharing import Share, Sharing

LIFETIME_S = 1800
HOSTS = ("h1", "h2", "h3")


class Lot(msgspec.Struct, frozen=True):
    settings: ControlSettings
    room: Capacity
    """Of each host."""
    labels: tuple[str, ...]
    """That jobs ask for, as often as they stand here."""


def draw(rng: random.Random, state_dir: str, prefix: str) -> Lot:
    vcpus = rng.choice((6, 10, 48))
    classes = {
        "ironcd": MachineClass("ironcd", lifetime_s=LIFETIME_S, warm=rng.choice((0, 1, 2))),
        "ironcd-cold": MachineClass("ironcd-cold", lifetime_s=LIFETIME_S, start="cold"),
        "ironcd-big": MachineClass("ironcd-big", 6, 8192, lifetime_s=LIFETIME_S, warm=rng.choice((0, 0, 1))),
    }
    sharing = Sharing(
        repository=Share(runners=rng.choice((None, 5, 8))),
        repositories={
            "acme/flood": Share(runners=rng.choice((3, 6)), weight=0.5, priority=-2),
            "acme/tools": Share(),
            "acme/web": Share(weight=3.0, priority=rng.choice((0, 3))),
        },
        organisations={"beta": Share(vcpus=rng.choice((4, 8)))},
        classes={"ironcd-big": Share(runners=rng.choice((1, 3)), priority=rng.choice((0, 2)))},
    )
    settings = ControlSettings(
        app_id=424_242,
        state_dir=state_dir,
        prefix=prefix,
        hosts=dict.fromkeys(HOSTS, ""),
        classes=classes,
        sharing=sharing,
        registration=rng.choice(("organisation", "repository")),
        rerun_on_infra_loss=rng.choice(((), ("*",), ("acme/app", "beta"), ("class:ironcd",))),
    )
    return Lot(settings, Capacity(vcpus, vcpus * 4096, 4000), ("ironcd",) * 6 + ("ironcd-cold",) * 2 + ("ironcd-big",))


def without_waiting(classes: Mapping[str, MachineClass]) -> dict[str, MachineClass]:
    """The same, with no machines that wait."""
    return {label: msgspec.structs.replace(machine, warm=0) for label, machine in classes.items()}
