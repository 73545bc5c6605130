"""What a simulated workflow run consists of: GitHub's own workflow syntax, cut to what the simulator's runner can do.

Keys are GitHub's (``runs-on``, ``continue-on-error``).  An unknown key is refused: a step that was silently left out
would make a run look better than it is.
"""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from orchestrator.core.errors import UserError


class StepSpec(msgspec.Struct, rename="kebab", forbid_unknown_fields=True, omit_defaults=True):
    """One ``run:`` step; ``if_`` (``if``) is one of success(), failure(), always(), cancelled()."""

    run: str
    name: str = ""
    id: str = ""
    env: dict[str, str] = {}
    if_: str = msgspec.field(default="success()", name="if")
    continue_on_error: bool = False
    timeout_minutes: int = 0
    shell: str = ""
    working_directory: str = ""


class JobSpec(msgspec.Struct, rename="kebab", forbid_unknown_fields=True, omit_defaults=True):
    """One job; ``environment`` names a deployment environment, which waits for approval unless ``approved``."""

    runs_on: list[str] | str
    steps: list[StepSpec]
    name: str = ""
    env: dict[str, str] = {}
    environment: str = ""
    approved: bool = False
    timeout_minutes: int = 360

    @property
    def labels(self) -> list[str]:
        return [self.runs_on] if isinstance(self.runs_on, str) else list(self.runs_on)


class WorkflowSpec(msgspec.Struct, rename="kebab", forbid_unknown_fields=True, omit_defaults=True):
    """A workflow file: its jobs by id, and the secrets that its jobs see."""

    jobs: dict[str, JobSpec]
    name: str = "CI"
    path: str = ".github/workflows/ci.yml"
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    on: Any = None


def workflow_of(value: WorkflowSpec | dict[str, Any] | str) -> WorkflowSpec:
    """``value`` as a workflow: the thing itself, its JSON form, or the text of a workflow file.

    Raises UserError (code ``workflow-invalid``) for what isn't one.
    """
    if isinstance(value, WorkflowSpec):
        return value
    try:
        if isinstance(value, str):
            value = _without_on(yaml.safe_load(value))
        return msgspec.convert(value, WorkflowSpec)
    except (msgspec.ValidationError, yaml.YAMLError) as error:
        raise UserError(
            f"the simulator can't run this workflow: {error}",
            code="workflow-invalid",
            remedy="Use jobs with runs-on and steps with run; actions (uses) are not simulated.",
        ) from error


def _without_on(content: Any) -> Any:
    """YAML 1.1 reads the key ``on`` as a truth value; the simulator starts runs by hand and needs no triggers."""
    return {key: item for key, item in content.items() if key is not True} if isinstance(content, dict) else content
