#!/usr/bin/python3 -IS
# ruff: noqa: EXE001 - executable where it is unpacked
"""Stands in for ``bin/Runner.Listener`` in the boot test: looks at where it is, asks the hook, and reports.

Its first run asks to be started again (status 2); the second gets no registration.  It prints one JSON object, which
the guest's own process hands to the host as the end of the runner's output.  The registration itself is never printed.
"""

import glob
import hashlib
import json
import os
import stat
import subprocess
import sys
import time

VARIABLE = "ACTIONS_RUNNER_INPUT_JITCONFIG"
AUTHORITY = "/usr/local/share/ca-certificates/ironcd-0.crt"
STATE = "/opt/actions-runner/state.json"
HOOK = os.environ["ACTIONS_RUNNER_HOOK_JOB_STARTED"]


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main():
    if not os.path.exists(STATE):
        with open(STATE, "w") as file:
            json.dump(first_run(os.environ[VARIABLE]), file)
        sys.exit(2)
    with open(STATE) as file:
        found = json.load(file)
    found["registration_at_second_start"] = VARIABLE in os.environ
    say("Listening for Jobs")
    found["hook"] = ask()
    say("2026-01-01 00:00:00Z: Job build completed with result: Succeeded")
    time.sleep(3)
    found["hook_after_refusal"] = ask()
    # By root, whom systemd itself answers: D-Bus starts once the runner listens, as what no job waits for does.
    found["failed_units"] = output("sudo", "-n", "systemctl", "--failed", "--plain", "--no-legend").split()
    say(json.dumps(found, separators=(",", ":")))


def first_run(blob):
    piece = blob[len(blob) // 2 :][:64].encode()
    return {
        "sha256": hashlib.sha256(blob.encode()).hexdigest(),
        "arguments": sys.argv[1:],
        "ids": [os.getuid(), os.getgid(), sorted(os.getgroups())],
        "cwd": os.getcwd(),
        "home": os.environ["HOME"],
        "in_arguments": [path for path in glob.glob("/proc/[0-9]*/cmdline") if piece in read(path)],
        "in_files": holders(piece),
        "others_read_environment": succeeds("-u", "nobody", "head", "-c1", f"/proc/{os.getpid()}/environ"),
        "root": succeeds("true"),
        "seed": succeeds("head", "-c1", "/dev/sr0"),
        "hostname": os.uname().nodename,
        "modes": {
            path: mode(path)
            for path in (HOOK, "/run/ironcd/guest.sock", "/opt/actions-runner", "/usr/lib/ironcd/guest")
        },
        "address": output("ip", "-br", "-4", "address", "show", "dev", "eth0").split()[1:],
        "nameservers": [
            line for line in read("/etc/resolv.conf").decode().splitlines() if line.startswith("nameserver")
        ],
        "authority": output("openssl", "verify", "-CApath", "/etc/ssl/certs", AUTHORITY),
        "bundle": (read(AUTHORITY).strip() or b"?") in read("/etc/ssl/certs/ca-certificates.crt"),
        "disk": os.statvfs("/").f_blocks * os.statvfs("/").f_frsize,
        "waited_loaded": b"not listed" in read_as_root("/var/log/cloud-init-output.log"),
    }


def holders(piece):
    """Files with the registration, looked for as root; the pattern goes in by standard input, not as an argument."""
    places = ["/etc", "/home", "/opt", "/run", "/tmp", "/var"]
    search = ["sudo", "-n", "grep", "-rlF", "-D", "skip", "-f", "-", *places]
    return subprocess.run(search, input=piece + b"\n", capture_output=True, check=False).stdout.decode().split()


def succeeds(*argv):
    return subprocess.run(["sudo", "-n", *argv], capture_output=True, check=False).returncode == 0


def output(*argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode().strip()


def mode(path):
    found = os.stat(path)
    return [found.st_uid, found.st_gid, oct(stat.S_IMODE(found.st_mode))]


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def read_as_root(path):
    return subprocess.run(["sudo", "-n", "cat", path], capture_output=True, check=False).stdout


def ask():
    """Run the hook as the runner does; its status and the first line that it printed."""
    job = {
        "GITHUB_REPOSITORY": "octo/hello",
        "GITHUB_RUN_ID": "42",
        "GITHUB_RUN_ATTEMPT": "1",
        "GITHUB_JOB": "build",
        "RUNNER_NAME": "ironcd-test",
    }
    done = subprocess.run([HOOK], env={**os.environ, **job}, capture_output=True, check=False)
    return [done.returncode, done.stdout.decode().strip()]


main()
