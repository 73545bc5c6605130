"""Making one VM, in an order in which it can never reach anything that its policy doesn't allow.

The tap is down and the VM is paused until its rules stand in the kernel and were read back, and the gateway has
acknowledged its policy; only then does the link come up, and after it the VM runs.  A step that fails leaves the rest to
`orchestrator.host.end`, which clears away whatever there is.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.core.link import GatewayRequest, Link
from orchestrator.core.wire import DesiredRunner
from orchestrator.host.disk import INITRD, KERNEL, copy_boot, make_disk
from orchestrator.host.domain_xml import DomainSpec
from orchestrator.host.gateway import GatewayAway
from orchestrator.host.images import LocalImage, find_image
from orchestrator.host.parts import Cancelled, Parts, Runner, link_of, rules_of
from orchestrator.host.seed import make_seed
from orchestrator.host.slots import Slot
from orchestrator.system.files import write_atomic

VM_USERS = 1_990_000_000
"""QEMU of the VM on link N runs as this user id + N: what one VM's QEMU owns, no other's can open."""
_GATEWAY_PATIENCE_S = 15.0
_CHANNEL_PATIENCE_S = 5.0


def start(parts: Parts, runner: Runner, want: DesiredRunner) -> None:
    """Make the VM of ``want`` and let it run.  Raises HostError where that fails, `Cancelled` where it isn't wished any more."""
    record, names, files = runner.record, runner.names, runner.paths(parts)
    with runner.lock:
        record.vm = "making"
        runner.secret = want.jit
        slot = parts.slots.take(parts.clock())
        record.slot = slot.index
    runner.mark(parts, "accepted")
    image = find_image(parts.paths.images, want.machine.image)
    parts.wires.make(names.tap)
    _go_on(runner)
    make_disk(image, files.disk, size_gib=want.machine.disk_gib)
    copy_boot(image, files.boot)
    runner.mark(parts, "disk_made")
    make_seed(files.seed, names, slot, jit=want.jit, cas=_authorities(parts.settings.guest_ca_files))
    runner.mark(parts, "seed_made")
    _go_on(runner)
    parts.hypervisor.start_paused(_spec(parts, runner, want, image, slot))
    runner.mark(parts, "domain_started")
    _go_on(runner)
    _wire_up(parts, runner, want, slot)
    _go_on(runner)
    with runner.lock:
        record.released = True
        record.vm = "running"
        parts.records.save(record)
    parts.hypervisor.resume(names.domain)
    parts.changed()


def _wire_up(parts: Parts, runner: Runner, want: DesiredRunner, slot: Slot) -> None:
    """From a tap that is down in the host's namespace to a link that is up behind its rules."""
    tap = runner.names.tap
    link = link_of(want, slot)
    parts.wires.move(tap)
    parts.wall.install(rules_of(link))
    runner.mark(parts, "chain_installed")
    put_in_force(parts, runner, link)
    parts.wires.up(tap, slot)
    _connect(parts, runner)


def put_in_force(parts: Parts, runner: Runner, link: Link) -> None:
    """Have the gateway apply ``link``, and see that it is that policy which it has in force."""
    write_atomic(runner.paths(parts).link, msgspec.json.encode(link))
    _apply(parts, runner, link)
    with runner.lock:
        runner.record.policy = link.policy.digest
        runner.record.generation = link.generation
        runner.record.bound = link.bound
        runner.applied = True
        parts.records.save(runner.record)
    parts.changed()


def _apply(parts: Parts, runner: Runner, link: Link) -> None:
    deadline = time.monotonic() + _GATEWAY_PATIENCE_S
    while True:
        try:
            reply = parts.gateway.ask(GatewayRequest("apply", link.tap))
            break
        except GatewayAway:
            if time.monotonic() > deadline:
                raise
            _go_on(runner)
            time.sleep(0.1)
    if not reply.ok or (reply.policy, reply.generation) != (link.policy.digest, link.generation):
        why = reply.error or f"it has {reply.policy or 'none'}, generation {reply.generation}"
        raise HostError(
            f"the gateway doesn't have the policy in force: {why}",
            code="policy-not-in-force",
            remedy="See the gateway's log; the VM gets nothing through until then.",
        )


def _connect(parts: Parts, runner: Runner) -> None:
    """Open the guest's channel before the guest runs: what it says to a closed port is lost."""
    channel = runner.paths(parts).channel
    deadline = time.monotonic() + _CHANNEL_PATIENCE_S
    while not parts.talk.ensure(runner.record.id, channel):
        if time.monotonic() > deadline:
            raise HostError(
                f"the guest's channel {channel} can't be opened",
                code="channel-failed",
                remedy="See /var/log/libvirt/qemu/ for what QEMU says about it.",
            )
        _go_on(runner)
        time.sleep(0.02)


def _spec(parts: Parts, runner: Runner, want: DesiredRunner, image: LocalImage, slot: Slot) -> DomainSpec:
    files = runner.paths(parts)
    return DomainSpec(
        ulid=want.id,
        site=parts.settings.netns,
        name=runner.names.domain,
        domain_type=parts.domain_type,
        vcpus=want.machine.vcpus,
        memory_mib=want.machine.memory_mib,
        kernel=str(files.boot / KERNEL),
        initrd=str(files.boot / INITRD),
        cmdline=image.manifest.cmdline,
        disk=str(files.disk),
        backing=str(image.disk),
        seed=str(files.seed),
        tap=runner.names.tap,
        channel=str(files.channel),
        console=str(files.console),
        keeps_blocks=parts.settings.disk_erase == "zero",
        owner="" if parts.qemu_group is None else f"+{VM_USERS + slot.index}:+{parts.qemu_group}",
    )


def _authorities(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The PEM texts of the authorities that guests trust."""
    try:
        return tuple(Path(path).read_text() for path in paths)
    except OSError as error:
        raise HostError(
            f"can't read the authority {error.filename}: {error.strerror}",
            code="ca-missing",
            remedy="Correct host.guest_ca_files.",
        ) from error


def _go_on(runner: Runner) -> None:
    if runner.cancel.is_set():
        raise Cancelled
