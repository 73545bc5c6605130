"""Check runs and statuses of what was blocked, with githubkit against the simulated GitHub."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.control.github import Refused
from orchestrator.simulator.github.jit import new_key
from tests.adapters.control.test_github import WORKFLOW, kit_of, simulated_github


@pytest.fixture(scope="module")
def key() -> Any:
    return new_key()


async def test_a_check_run_stands_on_the_commit(key: Any) -> None:
    simulated = simulated_github(key)
    run = simulated.create_run("app", WORKFLOW)
    sha = run.head_sha
    github = kit_of(simulated, key)
    await github.add_check_run(
        simulated.installation_id,
        "acme/app",
        sha,
        name="ironcd/egress (build)",
        conclusion="neutral",
        title="t",
        summary="s",
    )
    repo = simulated.repository("app")
    (found,) = [one for one in repo.check_runs.values() if one["name"].startswith("ironcd/")]
    assert (found["head_sha"], found["status"], found["conclusion"]) == (sha, "completed", "neutral")
    assert (found["output"]["title"], found["output"]["summary"]) == ("t", "s")
    await github.close()


async def test_an_app_without_the_permission_is_refused(key: Any) -> None:
    simulated = simulated_github(key)
    for installation in simulated.state.installations.values():
        installation.permissions.pop("checks")
    github = kit_of(simulated, key)
    with pytest.raises(Refused):
        await github.add_check_run(
            simulated.installation_id, "acme/app", "0" * 40, name="n", conclusion="neutral", title="t", summary="s"
        )
    await github.close()
