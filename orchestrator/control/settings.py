"""The settings that the control plane needs, as plain values.  Reading files and the environment is the surface's work.

Secrets are named by the file that holds them: these settings may be written down and logged.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from orchestrator.core.machine import OUR_LABEL, MachineClass
from orchestrator.core.retention import Retention
from orchestrator.core.runner import Deadlines
from orchestrator.core.sharing import Sharing


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long things wait for one another, in seconds."""

    host_away_s: float = 15.0
    """A host that was silent for so long gets no new runner."""
    host_lost_s: float = 180.0
    """A host that was silent for so long has lost its runners: their jobs are an infrastructure loss."""
    policy_s: float = 60.0
    """A repository's policy file is read again after so long."""
    job_check_s: float = 120.0
    """GitHub is asked so often about a job whose end may have been missed."""
    claim_s: float = 2.0
    """GitHub is asked so often about a job that a guest claims to have."""
    retry_s: tuple[float, ...] = (1.0, 2.0, 5.0, 15.0, 60.0)
    """Between one try at GitHub and the next; the last one stays."""
    replace_s: tuple[float, ...] = (0.0, 15.0, 60.0)
    """Before the runner of a job is replaced; their number is the limit."""
    jit_s: int = 3600
    """A sealed JIT configuration is forgotten after so long, taken or not."""
    search_s: float = 60.0
    """GitHub is asked so often for the queued jobs of each repository that had one of ours in the last 6 hours."""
    redelivery_s: float = 90.0
    """Deliveries that didn't arrive are looked for at GitHub, and asked for again, so often."""
    sweep_s: float = 60.0
    """Finished jobs and destroyed runners beyond the limits are let go so often."""


class ControlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The API and the worker read the same settings, handed over as a JSON file."""

    app_id: int
    redis_url: str = "unix:///run/ironcd/redis.sock"
    prefix: str = "ironcd:"
    """Of every key in Redis."""
    state_dir: str = "/var/lib/ironcd/control"
    """archive/, audit/, and the key that seals JIT configurations"""
    api_url: str = "https://api.github.com"
    private_key_file: str = "/etc/ironcd/app.pem"
    webhook_secret_files: tuple[str, ...] = ("/etc/ironcd/webhook-secret",)
    admin_token_file: str = "/etc/ironcd/admin-token"  # noqa: S105 - a path
    hosts: dict[str, str] = {}
    """Host name to the file with its bearer token."""
    runner_group_id: int = 1
    registration: Literal["organisation", "repository"] = "organisation"
    """Where runners of organisations are registered.  GitHub gives a runner to any repository of its organisation, so quotas
    and shares of single repositories hold to the machine only with ``repository`` (docs/adr/0015)."""
    sharing: Sharing = Sharing()
    installations: tuple[int, ...] = ()
    """Where any is named, deliveries of other installations are set aside."""
    classes: dict[str, MachineClass] = msgspec.field(default_factory=lambda: {OUR_LABEL: MachineClass(name=OUR_LABEL)})
    """By label; ``ironcd`` is the default one."""
    organisation_policy_file: str = ""
    """The policy above every repository's; empty: each repository must have its own."""
    deadlines: Deadlines = Deadlines()
    pace: Pace = Pace()
    rerun_on_infra_loss: tuple[str, ...] = ()
    """Whose jobs are run again after their machine was lost: ``*``, organisations, ``owner/name``, ``class:NAME``."""
    rerun_budget: int = 1
    """A run is run again so often at most."""
    finished_kept: int = 10_000
    """Finished jobs that stay in Redis; all stay in the archive."""
    unserved_kept: int = 5_000
    """Jobs that aren't ours to serve and whose reason is remembered."""
    unserved_days: float = 7.0
    """And for so long."""
    github_concurrency: int = 8
    retention: Retention = Retention()
    """How long records of egress are kept."""
    delete_records: bool = True
    """Delete once a day those that are over."""
    checkpoint_copies: str = ""
    """A folder elsewhere for copies of signed checkpoints; empty for none."""
    checkpoint_copy_s: float = 600.0
