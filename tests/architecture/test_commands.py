"""Every command can be used from its help alone: an example that the command itself takes, help for each option, ``--json``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from orchestrator.surface.cli.app import app

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = get_command(app)
assert isinstance(ROOT, TyperGroup)
EXAMPLE = re.compile(r"^ *Example[^:\n]*: \[bold\](.+)\[/bold\]$", re.MULTILINE)

WITHOUT_JSON = {
    "up": "runs until it is stopped",
    "demo": "a show for people; what it found out is in the file that it names",
    "audit export": "--format has the forms",
    "egress inspect": "prints JSON anyway",
    "simulate github": "runs until it is stopped, and says where it is in FOLDER/ready.json",
    "simulate fault": "gives an order; the exit status is all there is to know",
    "simulate faults load": "gives an order",
    "simulate faults end": "gives an order",
    "hosts cordon": "gives an order",
    "hosts uncordon": "gives an order",
    "templates rebuild": "gives an order",
    "quarantine lift": "gives an order",
    "audit hold add": "gives an order",
    "audit hold remove": "gives an order",
}
"""Commands that show no data, each with the reason."""


def leaves(group: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, TyperCommand]]:
    for name, below in group.commands.items():
        if isinstance(below, TyperGroup):
            yield from leaves(below, (*path, name))
        else:
            assert isinstance(below, TyperCommand)
            yield " ".join((*path, name)), below


COMMANDS = dict(leaves(ROOT))


def parsed(argv: list[str]) -> str:
    """The command that ``argv`` is for, its options and arguments read as they would be.  Raises click's UsageError."""
    command: TyperGroup | TyperCommand = ROOT
    path: list[str] = []
    context = command.make_context("ironcd", argv)
    while isinstance(command, TyperGroup):
        name, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert isinstance(below, TyperGroup | TyperCommand)
        path.append(str(name))
        command = below
        context = command.make_context(path[-1], rest, parent=context)
    return " ".join(path)


def first_of(example: str) -> list[str]:
    """The words of an example up to a pipe or a redirection."""
    words = shlex.split(example, comments=True)
    ends = [number for number, word in enumerate(words) if word in {"|", ">", ">>", "<"}]
    return words[: ends[0]] if ends else words


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 30
    assert set(WITHOUT_JSON) <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_the_command_takes(name: str) -> None:
    examples = EXAMPLE.findall(COMMANDS[name].help or "")
    assert examples, "its help has no example"
    for example in examples:
        program, *argv = first_of(example)
        assert program == "ironcd"
        assert parsed(argv) == name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_has_help(name: str) -> None:
    silent = [param.name for param in COMMANDS[name].params if not getattr(param, "help", None)]
    assert silent == []


@pytest.mark.parametrize("name", COMMANDS)
def test_what_shows_data_shows_it_to_programs_too(name: str) -> None:
    has = any("--json" in param.opts for param in COMMANDS[name].params)
    assert has is (name not in WITHOUT_JSON)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_status_that_means_more_than_success_is_in_the_help(name: str) -> None:
    """A command that ends by itself with another status than an error's says what it means."""
    callback = COMMANDS[name].callback
    assert callback is not None
    code = callback.__wrapped__ if hasattr(callback, "__wrapped__") else callback
    if "Exit" in code.__code__.co_names:
        assert re.search(r"[Ee]nds with\s+status|Exit status", COMMANDS[name].help or "")


def test_an_example_with_an_option_that_isnt_there_is_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed(shlex.split("jobs list --nonsense"))
    assert parsed(["audit", "hold", "list", "--json"]) == "audit hold list"
    assert first_of("ironcd audit export --format csv > x.csv") == ["ironcd", "audit", "export", "--format", "csv"]


PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "policies").glob("*.md")]
    + [*(REPOSITORY / "charts").rglob("*.md")]
)


def shown(page: Path) -> list[str]:
    """The uses of the command on a page: lines of code blocks, and code within text that has more than a command's name."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(
        r"`((?:\S*/)?ironcd [^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    found = [re.sub(r"^(\$ |sudo |# )+", "", line) for line in [*lines, *inline]]
    return [line for line in found if re.match(r"(?:\S*/)?ironcd [a-z-]", line) and "..." not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_what_a_page_shows_is_what_the_command_takes(page: Path) -> None:
    wrong = []
    for line in shown(page):
        _, *argv = first_of(re.sub(r"\bID\b", "7", line))
        try:
            parsed(argv)
        except Exception as error:  # noqa: BLE001 - click's own, which typer brings in a copy of its own
            if type(error).__name__ == "MissingParameter" and not any(word.startswith("-") for word in argv):
                continue  # a command that is named, and not one that is to be typed
            wrong.append(f"{line}: {type(error).__name__}: {error}")
    assert wrong == []
