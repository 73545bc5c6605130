from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.surface import cli

Run = Callable[..., int]

POLICY = """\
# Of the organisation.
mode: enforce
repositories_may: narrow

allow:
  - {preset: node}
  - host: api.example.com  # the API
  - {host: "*.cdn.example.com", comment: files}

deny:
  - {host: bad.cdn.example.com}

tests:
  - {host: api.example.com, expect: allow}
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run ``ironcd egress ...`` with the configuration of ``tmp_path``; its exit status."""
    (tmp_path / "policy.yml").write_text(POLICY)
    (tmp_path / "ironcd.toml").write_text(
        f'[policy]\norganisation_file = "{tmp_path}/policy.yml"\n[host]\ncache_dir = "{tmp_path}/cache"\n'
        f'[control]\nadmin_token_file = "{tmp_path}/token"\nlisten = "127.0.0.1:9"\n'
    )
    (tmp_path / "token").write_text("t")
    for name in ("IRONCD_CONFIG", "IRONCD_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def call(*argv: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ironcd", "--config", str(tmp_path / "ironcd.toml"), "egress", *argv])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return call
