"""The simulator's own runner, packed the way GitHub's is: a tarball with ``bin/Runner.Listener``.

It stands in the place of actions/runner behind the same interface (``ACTIONS_RUNNER_INPUT_JITCONFIG``, exit statuses,
hooks, ``.setup_info``), so that nothing outside the simulator can tell which of the two it is.
"""

from orchestrator.simulator.runner.tarball import runner_tarball, write_runner

__all__ = ["runner_tarball", "write_runner"]
