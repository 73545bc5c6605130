"""How the processes of a machine are started: what each is handed, and what none is."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import ConfigurationError
from orchestrator.surface.settings import Settings
from orchestrator.surface.up import PROCESSES, Stack, redis_argv


@pytest.fixture
def settings(tmp_path):
    host = {"name": "h", "state_dir": str(tmp_path / "state"), "run_dir": str(tmp_path / "run")}
    redis = {"url": f"unix://{tmp_path}/redis.sock", "folder": tmp_path / "redis"}
    return Settings(host=host, redis=redis, control={"state_dir": tmp_path / "control"})


def test_our_redis_loses_no_write_and_asks_nobody_in(settings):
    argv = " ".join(redis_argv(settings))
    assert "--appendonly yes --appendfsync always" in argv
    assert "--port 0" in argv
    assert "--unixsocketperm 600" in argv
    assert "--maxmemory-policy noeviction" in argv


def test_a_redis_on_loopback_binds_to_nothing_else():
    argv = redis_argv(Settings(redis={"url": "redis://127.0.0.1:6400/0"}))
    assert (argv[1], argv[2]) == ("--bind", "127.0.0.1")
    assert "6400" in argv


@pytest.mark.parametrize("url", ["redis://10.0.0.1:6379", "rediss://127.0.0.1:6379", "redis://:pw@127.0.0.1:6379"])
def test_a_redis_elsewhere_is_not_ours_to_start(url):
    with pytest.raises(ConfigurationError, match="can't start"):
        redis_argv(Settings(redis={"url": url}))


def test_all_processes_in_their_order(settings):
    assert tuple(Stack(settings).supervisor.children) == PROCESSES


def test_a_host_apart_runs_no_control_plane(settings):
    assert list(Stack(settings, only=("gateway", "agent")).supervisor.children) == ["agent", "gateway"]


def test_a_redis_that_is_another_s_is_left_alone(settings):
    other = settings.model_copy(update={"redis": settings.redis.model_copy(update={"start": False})})
    assert "redis" not in Stack(other).supervisor.children


def test_an_unknown_process_is_refused(settings):
    with pytest.raises(ConfigurationError, match="no process is called 'agnet'"):
        Stack(settings, only=("agnet",))


def test_a_missing_secret_is_told_before_anything_starts(settings, tmp_path):
    token = tmp_path / "no-such-token"
    control = settings.control.model_copy(update={"admin_token_file": token})
    stack = Stack(settings.model_copy(update={"control": control}))
    with pytest.raises(ConfigurationError, match=r"control\.admin_token_file"):
        stack.start()
    assert stack.pids == {}


def test_agent_and_gateway_are_told_nothing_of_redis_or_github(settings):
    children = Stack(settings).supervisor.children
    for name in ("agent", "gateway"):
        program = children[name].program
        assert "control.json" not in " ".join(program.argv)
        assert dict(program.env) == {}
