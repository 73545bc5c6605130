"""The runner's process: GitHub's ``bin/Runner.Listener run`` as the unprivileged user ``runner``.

The registration goes into the new process's environment in the call that starts it.  It is in no file, in no process's
arguments, and no other user can read a process's environment.  The runner takes the variable out of what it hands on.
"""

from __future__ import annotations

import os
import pwd
import signal

FOLDER = "/opt/actions-runner"
USER = "runner"
REGISTRATION = "ACTIONS_RUNNER_INPUT_JITCONFIG"
_ARGUMENTS = ["bin/Runner.Listener", "run"]


class Runner:
    """One process.  ``output`` is the reading end of a pipe with its standard output and error; ``handle`` is a
    pidfd, readable when it has exited.
    """

    def __init__(self, pid: int, output: int) -> None:
        self.pid = pid
        self.output = output
        self.silent = False
        """Its output has ended, though it may still run."""
        self.handle = os.pidfd_open(pid)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def reap(self) -> int:
        """The exit status as a shell says it."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.handle)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def start(registration: str) -> Runner:
    """Start it; with "" it goes on with the files that its last start left."""
    account = pwd.getpwnam(USER)
    env = environment(account.pw_dir, read_env(f"{FOLDER}/.env"), registration)
    output, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become_runner(account, theirs, env)
        finally:
            os._exit(126)
    os.close(theirs)
    return Runner(pid, output)


def environment(home: str, extra: dict[str, str], registration: str) -> dict[str, str]:
    env = {"HOME": home, "USER": USER, "LOGNAME": USER, "SHELL": "/bin/bash", "LANG": "C.UTF-8", **extra}
    if registration:
        env[REGISTRATION] = registration
    return env


def read_env(path: str) -> dict[str, str]:
    """``NAME=value`` lines, as the runner reads them itself."""
    with open(path, encoding="utf-8") as file:
        pairs = (line.rstrip("\n").split("=", 1) for line in file if "=" in line)
        return {pair[0]: pair[1] for pair in pairs}


def _become_runner(account: pwd.struct_passwd, output: int, env: dict[str, str]) -> None:
    os.setsid()
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("0")  # when memory runs out, the job goes and not the guest's own process
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and that would be inherited
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.umask(0o022)
    os.chdir(FOLDER)
    os.execve(_ARGUMENTS[0], _ARGUMENTS, env)
