"""The guest's loop: one thread, which carries out what `session` decides.

Reads the channel to the host, the job-started hook's socket and the runner's output; writes status lines for the serial
console to standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import socket
import subprocess
import time

from . import gate, heat, network, registration, runner, seed, settle
from .session import (
    AnswerHook,
    Effect,
    LetOthersStart,
    OpenGate,
    PowerOff,
    Prepare,
    Say,
    Send,
    Session,
    SetClock,
    Settle,
    StartRunner,
    StopRunner,
)
from .stages import STAGES, Stages

PORT = "org.ironcd.0"
FACTS = "/usr/lib/ironcd/image.json"
REGISTRATION = "/run/ironcd/jit"
HOOK_SOCKET = "/run/ironcd/guest.sock"

_CONSOLE = 99
_TICK_S = 0.25
_SOON_S = 0.01
_FLUSH_S = 5.0
_LINK_S = 10.0
_QUESTION_BYTES = 8 * 1024


class Lines:
    """Cuts a stream into lines; a line longer than ``limit`` bytes is cut off there."""

    def __init__(self, limit: int) -> None:
        self._rest = b""
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: self._limit]
        return [line[: self._limit] for line in lines]


class Channel:
    """The virtio-serial port.  A port whose host end is closed reads as ended and polls as hung up, again and again.

    What the host wrote before it left is still there to be read, and counts.
    """

    def __init__(self, descriptor: int) -> None:
        """``descriptor`` doesn't block."""
        self.descriptor = descriptor
        self.connected = False
        self.lines = Lines(8 * 1024)
        self._last_words: list[bytes] = []
        self._unsent = b""

    def changed(self) -> bool:
        """Whether the host came or went since the last call."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        events = poll.poll(0)
        connected = not (events and events[0][1] & select.POLLHUP)
        return self._now(connected=connected)

    def hung_up(self) -> bool:
        """The host left just now, though it may be back already."""
        return self._now(connected=False)

    def _now(self, *, connected: bool) -> bool:
        before, self.connected = self.connected, connected
        if before and not connected:
            self._last_words = self._rest()
        if before != connected:
            self._unsent = b""
            self.lines = Lines(8 * 1024)
        return before != connected

    def read(self) -> list[bytes]:
        """Whole lines that have come, those before a hang-up first."""
        said, self._last_words = self._last_words, []
        with contextlib.suppress(BlockingIOError):
            said += self.lines.feed(os.read(self.descriptor, 4096))
        return said

    def _rest(self) -> list[bytes]:
        """All that was written before a hang-up."""
        said = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.descriptor, 4096):
                said += self.lines.feed(data)
        return said

    def send(self, data: bytes) -> None:
        self._unsent += data
        self.flush()

    def flush(self) -> bool:
        """True where nothing is left to send."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                self._unsent = self._unsent[os.write(self.descriptor, self._unsent) :]
        return not self._unsent


class Guest:
    def __init__(self) -> None:
        with open(FACTS, encoding="utf-8") as file:
            facts = json.load(file)
        self.session = Session(facts["digest"], facts["cloud_init"], time.monotonic())
        self.channel = Channel(os.open(find_port(), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        self.registration = ""
        self.runner: runner.Runner | None = None
        self.output = Lines(4 * 1024)
        self.hooks = listen(HOOK_SOCKET)
        self.asking: dict[int, tuple[socket.socket, bytes]] = {}
        self.waiting: list[socket.socket] = []
        self.stages = Stages()
        self.ended = False

    def run(self) -> None:
        while not self.ended:
            if self.channel.changed():
                self.came_or_went()
            if self.session.state == "seeding":
                self.seed()
            self.wait()
            self.do(self.session.tick(time.monotonic()))
        deadline = time.monotonic() + _FLUSH_S
        while self.channel.connected and not self.channel.flush() and time.monotonic() < deadline:
            time.sleep(0.05)

    def came_or_went(self) -> None:
        """The host did, at its end of the channel."""
        if self.channel.connected:
            self.do(self.session.opened())
            return
        self.handle(self.channel.descriptor)
        self.do(self.session.closed(time.monotonic()))

    def take_seed(self) -> None:
        """Without one cloud-init finds no data and leaves no registration, which the host is told."""
        try:
            seed.hand_over()
        except OSError as error:
            say(f"there is no seed: {error}")

    def seed(self) -> None:
        """Have cloud-init go through its stages; then take what it was given."""
        if self.stages.start() and len(self.stages.done) == len(STAGES):
            registration.end_cloud_init()
            if registration.cloud_init_done():
                self.take_registration()

    def stage_done(self, stage: str) -> None:
        if stage == "local":
            network.apply()

    def take_registration(self) -> None:
        try:
            self.registration = registration.take(REGISTRATION)
        except (OSError, RuntimeError, ValueError) as error:
            say(f"the registration can't be used: {error}")
        self.do(self.session.seeded(registered=bool(self.registration)))

    def wait(self) -> None:
        """Sleep until something happens, for a moment at most, and handle it."""
        poll = select.poll()
        for descriptor in self.stages.waiting():
            poll.register(descriptor, select.POLLIN)
        if self.channel.connected:
            poll.register(
                self.channel.descriptor, select.POLLIN if self.channel.flush() else select.POLLIN | select.POLLOUT
            )
        poll.register(self.hooks, select.POLLIN)
        for descriptor in self.asking:
            poll.register(descriptor, select.POLLIN)
        if self.runner is not None:
            poll.register(self.runner.handle, select.POLLIN)
            if not self.runner.silent:
                poll.register(self.runner.output, select.POLLIN)
        at_once = self.session.state == "seeding" and not self.stages.waiting()
        for descriptor, event in poll.poll((_SOON_S if at_once else _TICK_S) * 1000):
            if descriptor == self.channel.descriptor and event & select.POLLHUP:
                if self.channel.hung_up():
                    self.came_or_went()
            else:
                self.handle(descriptor)

    def handle(self, descriptor: int) -> None:
        now = time.monotonic()
        if descriptor == self.channel.descriptor:
            for line in self.channel.read():
                self.do(self.session.heard(line, now))
        elif descriptor == self.hooks.fileno():
            client, _ = self.hooks.accept()
            self.asking[client.fileno()] = (client, b"")
        elif descriptor in self.asking:
            self.read_question(descriptor)
        elif descriptor in self.stages.waiting():
            self.stage_done(self.stages.read(descriptor))
        elif self.runner is not None and descriptor == self.runner.output:
            self.read_output(self.runner)
        elif self.runner is not None and descriptor == self.runner.handle:
            self.runner_exited(self.runner)

    def read_question(self, descriptor: int) -> None:
        """``NAME=value`` lines until the hook closes its side."""
        client, question = self.asking[descriptor]
        data = client.recv(4096)
        if data and len(question) < _QUESTION_BYTES:
            self.asking[descriptor] = (client, question + data)
            return
        del self.asking[descriptor]
        self.waiting.append(client)
        pairs = (line.partition("=") for line in question.decode("utf-8", "replace").split("\n"))
        self.do(self.session.asked({name: value for name, _, value in pairs}, time.monotonic()))

    def read_output(self, process: runner.Runner) -> bool:
        data = os.read(process.output, 4096)
        process.silent = not data
        for line in self.output.feed(data):
            self.do(self.session.printed(line))
        return bool(data)

    def runner_exited(self, process: runner.Runner) -> None:
        os.set_blocking(process.output, False)  # a process that the job left behind may hold the pipe open
        with contextlib.suppress(BlockingIOError):
            while self.read_output(process):
                pass
        os.close(process.output)
        self.runner = None
        self.do(self.session.exited(process.reap(), time.monotonic()))

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.channel.send(effect.encode())
            elif isinstance(effect, Say):
                say(effect.text)
            elif isinstance(effect, (Prepare, OpenGate, SetClock, Settle)):
                self.pass_gate(effect)
            elif isinstance(effect, (StartRunner, StopRunner)):
                self.start_or_stop(effect)
            elif isinstance(effect, LetOthersStart):
                gate.tell_systemd("READY=1")
            elif isinstance(effect, AnswerHook):
                self.answer(effect)
            elif isinstance(effect, PowerOff):
                self.ended = True

    def pass_gate(self, effect: Prepare | OpenGate | SetClock | Settle) -> None:
        """What fails leaves the gate closed, and the host gives the machine up in time."""
        try:
            if isinstance(effect, OpenGate):
                gate.open_gate(effect.order, prepared=effect.prepared)
                self.do(self.session.gate_opened(time.monotonic()))
                self.take_seed()
            elif isinstance(effect, Prepare):
                gate.prepare(effect.order)
                failed = heat.heat()
                say(f"rehearsed a job's start{', but not ' if failed else ''}{' and '.join(failed)}")
                self.do(self.session.prepared())
            elif isinstance(effect, SetClock):
                gate.set_clock(effect.now_ns, only_forward=True)
            else:
                settle.settle()
                self.do(self.session.settled())
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            say(f"the gate stays as it is: {error}")

    def start_or_stop(self, effect: StartRunner | StopRunner) -> None:
        if isinstance(effect, StartRunner):
            self.start_runner(with_registration=effect.with_registration)
        elif self.runner is not None:
            self.runner.terminate()

    def start_runner(self, *, with_registration: bool) -> None:
        self.await_link()
        self.runner = runner.start(self.registration if with_registration else "")
        self.do(self.session.started(self.runner.pid, time.monotonic()))

    def await_link(self) -> None:
        deadline = time.monotonic() + _LINK_S
        while not network.is_up() and time.monotonic() < deadline:
            time.sleep(_SOON_S)

    def answer(self, answer: AnswerHook) -> None:
        for client in self.waiting:
            with contextlib.suppress(OSError), client:
                client.sendall((("ok\n" if answer.ok else "no\n") + answer.text + "\n").encode())
        self.waiting = []


def find_port(folder: str = "/sys/class/virtio-ports") -> str:
    """The device of our port, waited for; udev's link to it may come later than we do."""
    while True:
        with contextlib.suppress(OSError):
            for entry in os.listdir(folder):
                with open(f"{folder}/{entry}/name", encoding="ascii") as file:
                    if file.read().strip() == PORT:
                        return f"/dev/{entry}"
        time.sleep(0.1)


def listen(path: str) -> socket.socket:
    """The hook's socket, for root and the runner's group."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    os.chown(path, 0, pwd.getpwnam(runner.USER).pw_gid)
    os.chmod(path, 0o660)
    server.listen(8)
    server.setblocking(False)
    return server


def say(text: str) -> None:
    """To the journal, and to the console that `main` holds."""
    print(f"ironcd: {text}", flush=True)
    with contextlib.suppress(OSError):
        os.write(_CONSOLE, f"ironcd: {text}\r\n".encode())


def hold_console() -> None:
    """Keep the serial console open.  Its driver takes a tenth of a second to open a port that nobody has open, and
    systemd and cloud-init open it for each line they write.
    """
    with contextlib.suppress(OSError):
        console = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        os.dup2(console, _CONSOLE, inheritable=False)


def main() -> None:
    """Runs until the runner is done, then powers the machine off: nothing on its disk is wanted any more."""
    try:
        hold_console()
        Guest().run()
    except BaseException as error:
        say(f"the guest's own process ends: {type(error).__name__}: {error}")
        raise
    finally:
        os.execv("/usr/bin/systemctl", ["systemctl", "poweroff", "--force", "--force"])
