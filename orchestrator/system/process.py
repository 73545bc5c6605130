"""The one place that starts programs: argument lists only, an explicit environment, and errors ready to paste."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.core.errors import OperationalError

_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CommandFailed(OperationalError):
    """A program ended with a status other than 0, or couldn't be started."""

    def __init__(self, argv: Sequence[str], status: int, output: str) -> None:
        last = output.strip().splitlines()[-8:]
        super().__init__(
            f"`{shlex.join(argv)}` failed with status {status}" + ("".join("\n    " + line for line in last)),
            code="command-failed",
            remedy="Run the command by hand to see why.",
        )
        self.argv = tuple(argv)
        self.status = status
        self.output = output


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a program we start gets: the few variables that any needs, and ``extra``.  No secret of ours is inherited."""
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    env.setdefault("PATH", _PATH)
    env.setdefault("LANG", "C.UTF-8")
    env.update(extra or {})
    return env


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    cwd: str | None = None,
) -> str:
    """Run ``argv`` to its end and return what it wrote to standard output.

    Raises `CommandFailed` for a status other than 0, a program that isn't there (status 127) and a run longer than
    ``timeout_s`` (status 124).
    """
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            env=environment(env),
            cwd=cwd,
            timeout=timeout_s,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed(argv, 127, f"{argv[0]}: not found") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(argv, 124, f"still running after {timeout_s} s") from error
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


@contextlib.contextmanager
def holding(files: Sequence[int], *, user: int, group: int) -> Iterator[int]:
    """A process of ``user`` and ``group`` that holds ``files`` open under the same numbers during the block; its pid.

    Another process of that user can open them there (``/proc/PID/fd/N``), and nobody else but root.  Raises OSError.
    """
    process = subprocess.Popen(
        ["cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=list(files),
        user=user,
        group=group,
        extra_groups=[],
        cwd="/",
        env=environment(),
    )
    try:
        yield process.pid
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
