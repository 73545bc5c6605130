"""The configuration of a simulator that runs as a process of its own (JSON)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from orchestrator.core.errors import ConfigurationError


class WorldConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prefix: str
    """Names the two namespaces: PREFIX-up and PREFIX-out."""
    names: dict[str, list[str]] = {}
    """More names of the world, each with its addresses."""


class SimulatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    folder: str = ""
    """Where the files below and the world's CA are put; empty for a temporary folder that goes at the end."""
    ready_file: str = ""
    """Written once everything answers: where the API is, the namespaces, the CA.  Empty: FOLDER/ready.json."""
    private_key_file: str = ""
    """The App's private key is written here (mode 0600).  Empty: FOLDER/app.pem."""
    webhook_secret_file: str = ""
    """Read from here; made, with a new secret, where there is none.  Empty: FOLDER/webhook-secret."""
    host: str = "127.0.0.1"
    port: int = 0
    webhook_url: str = ""
    app_id: int = 424_242
    org: str = "acme"
    repositories: tuple[str, ...] = ("app",)
    shared_keys: int = 0
    world: WorldConfig | None = None


def load_config(path: Path) -> SimulatorConfig:
    """Raises ConfigurationError (code ``simulator-config``) for a file that isn't there or isn't one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SimulatorConfig)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(
            f"{path}: {error}", code="simulator-config", remedy="See orchestrator/simulator/config.py for the keys."
        ) from error
