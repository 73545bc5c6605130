"""``python -m orchestrator.simulator --config FILE``: GitHub, and if wanted a world around it, until SIGTERM.

Without a file it is a small organisation on loopback.  What a program needs to know to use it is printed as JSON, and
in the ready file.  ``--remove PREFIX`` deletes the namespaces that a killed simulator left.  Everything is steered by ``/_sim/``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import signal
import sys
import tempfile
import threading
from pathlib import Path

from orchestrator.core.errors import IronCDError
from orchestrator.simulator.config import SimulatorConfig, load_config
from orchestrator.simulator.control import world_routes
from orchestrator.simulator.github import Simulator
from orchestrator.simulator.world import World
from orchestrator.system.files import write_atomic


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.simulator", description=__doc__)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--config", "--settings", type=Path, help="JSON file; keys: orchestrator/simulator/config.py")
    choice.add_argument("--remove", metavar="PREFIX", help="delete the namespaces that a killed simulator left")
    arguments = parser.parse_args()
    try:
        if arguments.remove:
            World.remove(arguments.remove)
        else:
            serve(load_config(arguments.config) if arguments.config else SimulatorConfig())
    except IronCDError as error:
        sys.stderr.write(f"{error}\n{error.remedy}\n")
        return error.exit_status
    return 0


def serve(config: SimulatorConfig) -> None:
    """Run until SIGTERM or SIGINT, and leave nothing behind."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    with contextlib.ExitStack() as stack:
        folder = Path(config.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="ironcd-simulator-")))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ready = Path(config.ready_file or folder / "ready.json")
        # One from before would tell lies until this simulator is ready.
        ready.unlink(missing_ok=True)
        key_file = Path(config.private_key_file or folder / "app.pem")
        secret_file = Path(config.webhook_secret_file or folder / "webhook-secret")
        world = None
        if config.world is not None:
            made = World(config.world.prefix, names=config.world.names, folder=folder, replace=True)
            world = stack.enter_context(made)
        simulator = Simulator(
            config.host,
            config.port,
            webhook_url=config.webhook_url,
            webhook_secret=_secret(secret_file),
            app_id=config.app_id,
            org=config.org,
            repositories=config.repositories,
            shared_keys=config.shared_keys,
            admin=world_routes(world) if world else (),
        )
        write_atomic(key_file, simulator.app_private_key_pem.encode())
        stack.enter_context(simulator)
        if world is not None:
            world.serve_github(simulator)
        facts = _facts(simulator, world) | {"private_key_file": str(key_file), "webhook_secret_file": str(secret_file)}
        text = json.dumps(facts, indent=2) + "\n"
        write_atomic(ready, text.encode(), mode=0o644)
        sys.stdout.write(text)
        sys.stdout.flush()
        ended.wait()


def _secret(path: Path) -> str:
    if not path.exists():
        write_atomic(path, secrets.token_hex(20).encode())
    return path.read_text().strip()


def _facts(simulator: Simulator, world: World | None) -> dict[str, object]:
    """What a program that starts the simulator needs to know of it."""
    facts: dict[str, object] = {
        "api_url": simulator.api_url,
        "app_id": simulator.app_id,
        "installation_id": simulator.installation_id,
        "org": simulator.org,
    }
    if world is not None:
        facts |= {"uplink_netns": world.uplink_netns, "world_netns": world.netns, "ca_file": str(world.ca_file)}
    return facts


if __name__ == "__main__":
    sys.exit(main())
