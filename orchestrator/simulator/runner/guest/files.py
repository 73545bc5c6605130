"""The runner's own files: the blob's three, ``.env``, ``.path``, ``.setup_info``, and a step's command files."""

from __future__ import annotations

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Any

Json = dict[str, Any]
REGISTRATION = (".runner", ".credentials", ".credentials_rsaparams")


class BadBlob(Exception):
    """The JIT configuration isn't one."""


def unpack(encoded: str, root: Path) -> None:
    """Write each file of a JIT configuration into ``root``.  Raises `BadBlob`."""
    try:
        files = json.loads(base64.b64decode(encoded, validate=True))
        contents = {str(name): base64.b64decode(content, validate=True) for name, content in files.items()}
    except (binascii.Error, ValueError, AttributeError, TypeError) as error:
        raise BadBlob(type(error).__name__) from error
    for name, content in contents.items():
        path = root / name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def load(root: Path) -> tuple[Json, Json, dict[str, str]]:
    """Settings, credentials and key.  Raises `BadBlob` where one is missing or isn't JSON."""
    try:
        settings, credentials, key = (json.loads((root / name).read_bytes()) for name in REGISTRATION)
    except (OSError, ValueError) as error:
        raise BadBlob(f"{type(error).__name__}: not configured") from error
    return settings, credentials, key


def forget(root: Path) -> None:
    """Remove the registration: it was for one job."""
    for name in REGISTRATION:
        (root / name).unlink(missing_ok=True)


def read_environment(root: Path) -> None:
    """Take ``.env`` (NAME=value lines) and ``.path`` into this process' environment."""
    env, path = root / ".env", root / ".path"
    if env.is_file():
        for line in env.read_text().splitlines():
            name, equals, value = line.partition("=")
            if name.strip() and equals:
                os.environ[name.strip()] = value
    if path.is_file() and (text := path.read_text().strip()):
        os.environ["PATH"] = text


def setup_info(root: Path) -> list[str]:
    """The lines that ``.setup_info`` puts into the step "Set up job"."""
    path = root / ".setup_info"
    try:
        groups = json.loads(path.read_text()) if path.is_file() else []
        lines: list[str] = []
        for group in groups:
            lines += [f"##[group]{group.get('group', 'Machine Setup Info')}"]
            lines += [*str(group.get("detail", "")).splitlines(), "##[endgroup]"]
    except (ValueError, AttributeError, TypeError):
        return ["##[warning].setup_info is not valid"]
    return lines


def read_pairs(path: Path) -> dict[str, str]:
    """``name=value`` lines and ``name<<END`` blocks of a command file.  Raises ValueError for anything else."""
    pairs: dict[str, str] = {}
    lines = iter(path.read_text().splitlines())
    for line in lines:
        if not line:
            continue
        equals, heredoc = line.find("="), line.find("<<")
        if heredoc >= 0 and (equals < 0 or heredoc < equals):
            name, end = line[:heredoc], line[heredoc + 2 :]
            block: list[str] = []
            for inner in lines:
                if inner == end:
                    break
                block.append(inner)
            else:
                raise ValueError(f"Matching delimiter not found '{end}'")
            pairs[name] = "\n".join(block)
        elif equals > 0:
            pairs[line[:equals]] = line[equals + 1 :]
        else:
            raise ValueError(f"Invalid format '{line}'")
    return pairs
