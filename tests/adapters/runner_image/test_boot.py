"""A VM boots from the image; this side plays the host.  What the runner finds in there is what a job would find."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ulid import ULID

from orchestrator.core.names import Names, names_of
from orchestrator.host.slots import Slot
from runner_image.store import Image
from tests.adapters.runner_image.machine import Machine

pytestmark = [pytest.mark.real, pytest.mark.e2e]

BOOT_S = 300.0
STEP_S = 120.0
SLOT = Slot(0, "10.201.0.0", "10.201.0.1")


def an_authority() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "IronCD boot test")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    signed = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        key, hashes.SHA256()
    )
    return signed.public_bytes(serialization.Encoding.PEM).decode()


class Run:
    """What one whole life of a VM gave."""

    def __init__(self, machine: Machine, jit: str, names: Names) -> None:
        self.machine, self.jit, self.names = machine, jit, names
        self.closed: dict[str, object] | None = None
        self.early: dict[str, object] | None = None
        self.before: list[dict[str, object]] = []
        self.again: list[dict[str, object]] = []
        self.after: list[dict[str, object]] = []
        self.status: int | None = None

    def live(self) -> None:
        machine = self.machine
        machine.connect()
        self.before = [self.expect("hello", BOOT_S)]
        self.closed = machine.next(3.0)
        machine.open_gate()
        self.expect("opened")
        self.before.append(self.expect("jit_taken", BOOT_S))
        self.early = machine.next(3.0)
        machine.eject_seed()
        machine.send(m="seed_gone")
        self.before += [self.expect(kind) for kind in ("runner_started", "runner_started", "listening", "job_started")]
        # The host's agent dies while the job waits for its policy, and comes back.
        machine.disconnect()
        time.sleep(2)
        machine.connect()
        self.again = [
            self.expect(kind) for kind in ("hello", "opened", "jit_taken", "runner_started", "listening", "job_started")
        ]
        machine.send(m="bound", policy="sha256:0123", mode="enforce", rules=3)
        self.after = [self.expect("job_completed")]
        machine.send(m="refused", reason="the policy was withdrawn")
        self.after.append(self.expect("runner_exited"))
        self.status = machine.process.wait(300)

    def expect(self, kind: str, within_s: float = STEP_S) -> dict[str, object]:
        message = self.machine.next(within_s)
        assert (message or {}).get("m") == kind, f"wanted {kind}, got {message}\n{self.machine.story()}"
        assert message is not None
        return message

    @property
    def found(self) -> dict[str, object]:
        """What the runner in the VM reported."""
        tail = str(self.after[-1]["log_tail"])
        return json.loads(tail.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def run(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    names = names_of(str(ULID()))
    jit = base64.b64encode(os.urandom(3300)).decode()
    machine = Machine(tmp_path_factory.mktemp("vm"), image, names, SLOT, jit=jit, authority=an_authority())
    try:
        lived = Run(machine, jit, names)
        lived.live()
        sys.stdout.write(machine.story())
        yield lived
    finally:
        machine.end()


def test_the_image_says_which_it_is(run: Run, image: Image) -> None:
    assert run.before[0]["image"] == image.manifest.digest
    assert run.before[0]["cloud_init"] == image.manifest.cloud_init


def test_nothing_goes_on_in_front_of_the_gate(run: Run) -> None:
    assert run.closed is None


def test_the_runner_waits_until_the_seed_is_gone(run: Run) -> None:
    assert run.early is None
    assert run.found["seed"] is False


def test_the_runner_gets_its_registration_whole_and_once(run: Run) -> None:
    assert run.found["sha256"] == hashlib.sha256(run.jit.encode()).hexdigest()
    assert run.found["registration_at_second_start"] is False


def test_the_registration_is_nowhere_else(run: Run) -> None:
    piece = run.jit[len(run.jit) // 2 :][:64].encode()
    assert run.found["in_arguments"] == []
    assert run.found["in_files"] == []
    assert run.found["others_read_environment"] is False
    assert piece not in run.machine.console.read_bytes()
    assert piece not in run.machine.disk.read_bytes(), "a block of the disk has held it"
    assert piece not in json.dumps([message for _, message in run.machine.heard]).encode()


def test_the_runner_is_started_as_github_starts_it(run: Run) -> None:
    assert run.found["arguments"] == ["run"]
    assert run.found["cwd"] == "/opt/actions-runner"
    assert run.found["home"] == "/home/runner"
    assert run.found["ids"][:2] == [1001, 1001]
    assert run.found["root"] is True, "a job has sudo, as on GitHub's own runners"


def test_what_is_ours_in_there_belongs_to_root(run: Run) -> None:
    assert run.found["modes"] == {
        "/usr/lib/ironcd/job-started.sh": [0, 0, "0o755"],
        "/run/ironcd/guest.sock": [0, 1001, "0o660"],
        "/opt/actions-runner": [1001, 1001, "0o755"],
        "/usr/lib/ironcd/guest": [0, 0, "0o755"],
    }


def test_the_seed_was_carried_out(run: Run) -> None:
    assert run.found["hostname"] == run.names.domain
    assert run.found["address"] == ["UP", f"{SLOT.guest_ip}/31"]
    assert run.found["nameservers"] == [f"nameserver {SLOT.gateway_ip}"]
    assert run.found["bundle"] is True
    assert str(run.found["authority"]).endswith(": OK")
    assert run.found["failed_units"] == []


def test_cloud_init_waited_with_everything_loaded(run: Run) -> None:
    """What leaves out the table that it would print is what loads it: it would go on without, and nobody would know."""
    assert run.found["waited_loaded"] is True


def test_the_hook_waits_for_the_policy_and_says_which(run: Run) -> None:
    status, text = run.found["hook"]
    assert status == 0
    assert text == "IronCD egress policy in force: mode enforce, 3 rules, sha256:0123"


def test_a_refusal_fails_the_job(run: Run) -> None:
    status, text = run.found["hook_after_refusal"]
    assert status == 1
    assert text == "::error title=IronCD::IronCD refused this job: the policy was withdrawn"


def test_the_claim_is_what_the_runner_told_the_hook(run: Run) -> None:
    claim = {"m": "job_started", "repository": "octo/hello", "run_id": 42, "run_attempt": 1, "job": "build"}
    assert run.before[-1] == {**claim, "runner_name": "ironcd-test"}


def test_an_agent_that_comes_back_is_told_all_of_it(run: Run) -> None:
    assert run.again[0] == run.before[0]
    assert run.again[-1] == run.before[-1]


def test_the_machine_ends_with_its_runner(run: Run) -> None:
    assert run.after[-1]["code"] == 0
    assert run.status == 0


def test_the_console_tells_what_happened(run: Run) -> None:
    console = run.machine.console.read_text(errors="replace")
    for line in ("runner registration taken", "runner started, pid ", "waiting for its egress policy", "status 0"):
        assert f"{line}" in console


def test_the_disk_grew_to_its_class(run: Run) -> None:
    assert 9 << 30 < run.found["disk"] <= 10 << 30
