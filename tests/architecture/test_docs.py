"""The documents say what is there: links lead somewhere, error codes are explained, promises name what holds them."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import typer

from bench import registry
from orchestrator.core import lifecycle
from orchestrator.core.errors import DOCS
from orchestrator.core.policy_file import read_policy
from orchestrator.core.runner import NOTICE_S
from orchestrator.simulator.github.catalogue import CATALOGUE
from orchestrator.surface import settings
from orchestrator.surface.cli import hosts_drain
from orchestrator.surface.cli.app import app
from orchestrator.surface.cli.options import length
from orchestrator.surface.up import PROCESSES
from policies import load_presets

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "charts").rglob("*.md"),
        *(ROOT / "policies").glob("*.md"),
    ]
)
SOURCES = sorted(
    path for folder in ("orchestrator", "runner_image", "policies") for path in (ROOT / folder).rglob("*.py")
)
DRAIN_UNIT = ROOT / "docs/operations/systemd/ironcd-drain.service"
CODE = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)+")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(
        r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


def test_pages_that_the_source_names_exist() -> None:
    named = {
        (name, path)
        for path in [*SOURCES, *(ROOT / "runner_image").rglob("*.sh"), *(ROOT / "policies").rglob("*.yml")]
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert sorted(f"{path.relative_to(ROOT)}: {name}" for name, path in named if not (ROOT / name).exists()) == []


def codes_in(path: Path) -> set[str]:
    """Every code that an error or a failure is made with: ``code="..."``, or the first argument of ``Failure``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        if isinstance(node.func, ast.Name) and node.func.id == "Failure":
            given += node.args[:1]
        found |= {
            part.value
            for value in given
            for part in ast.walk(value)
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and CODE.fullmatch(part.value)
        }
    return found


def test_every_error_code_is_explained_and_every_explained_code_exists() -> None:
    used = set().union(*(codes_in(path) for path in SOURCES))
    assert len(used) > 30, "the search for codes finds next to none: it is broken"
    explained = set(re.findall(r"^### (.+)$", (ROOT / DOCS).read_text(), re.MULTILINE))
    assert (sorted(used - explained), sorted(explained - used)) == ([], [])


def test_the_search_for_codes_finds_them_in_each_form(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text('raise E("x", code="a-one" if y else "a-two", remedy="z-not")\nFailure("a-three", "not-this")\n')
    assert codes_in(source) == {"a-one", "a-two", "a-three"}


def test_commands_in_the_documents_exist() -> None:
    """The reference of the commands is generated, so its headings are the commands."""
    known = {
        tuple(name.split())
        for name in re.findall(r"^## `ironcd (.+)`$", (ROOT / "docs/reference/cli.md").read_text(), re.MULTILINE)
    }
    known |= {name[:2] for name in known}
    known |= {("simulate", fault) for fault in CATALOGUE}  # a fault's name is a command
    unknown = []
    for page in PAGES:
        for words in re.findall(
            r"(?:`|^)(?:\.venv/bin/)?ironcd ((?:[a-z][a-z-]* ?){1,2})", page.read_text(), re.MULTILINE
        ):
            given = tuple(words.split())
            if given[:1] not in known and given not in known:
                unknown.append(f"{page.relative_to(ROOT)}: ironcd {words}")
    assert unknown == []


def test_reasons_that_are_explained_are_reasons_that_there_are() -> None:
    text = (ROOT / "docs/operations/reading-the-record.md").read_text()
    table = text.partition("## Reasons")[2].partition("\n## ")[0]
    words = {
        word for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for word in re.findall(r"`([a-z_]+)`", row)
    }
    assert len(words) > 25
    parts = {"floor_metadata", "floor_private", "floor_loopback"}  # floor_ and a part of core.floor
    source = "\n".join(
        path.read_text()
        for folder in ("core", "egress", "host")
        for path in (ROOT / "orchestrator" / folder).glob("*.py")
    )
    unknown = [word for word in words - parts if f'"{word}' not in source]
    assert unknown == []


def test_the_diagram_is_the_lifecycles_own() -> None:
    diagrams = re.findall(
        r"^```mermaid\n(.*?)^```", (ROOT / "docs/ARCHITECTURE.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert lifecycle.mermaid() in diagrams


def promises() -> list[tuple[str, str]]:
    """Rows of SPECIFICATION.md: the promise, and what holds it."""
    rows = re.findall(r"^\| (?!---)(.+?) \| ([^|]+) \|$", (ROOT / "docs/SPECIFICATION.md").read_text(), re.MULTILINE)
    return [(promise, holder) for promise, holder in rows if holder.strip() != "held by"]


@pytest.mark.parametrize(("promise", "holder"), promises())
def test_every_promise_names_a_test_or_a_figure_that_exists_or_says_pending(promise: str, holder: str) -> None:
    figures = {figure.name for name in registry.NAMES for figure in registry.bench(name).figures}
    tests = re.findall(r"`(tests/[\w./-]+)(?:::(\w+))?`", holder)
    benches = re.findall(r"`bench:(\w+)`", holder)
    for path, name in tests:
        assert (ROOT / path).exists(), f"{path} isn't there"
        if name:
            assert re.search(rf"def {name}\(", (ROOT / path).read_text()), f"{path} has no {name}"
    assert set(benches) <= figures
    assert tests or benches or re.match(r"pending \(.+\)$", holder), f"nothing holds: {promise}"


def test_there_are_promises() -> None:
    assert len(promises()) > 20


@pytest.mark.parametrize(
    "unit",
    sorted(set((ROOT / "docs/operations/systemd").glob("*.service")) - {DRAIN_UNIT}),
    ids=lambda unit: unit.name,
)
def test_sample_units_start_processes_that_exist(unit: Path) -> None:
    (command,) = re.findall(r"^ExecStart=(.+)$", unit.read_text(), re.MULTILINE)
    assert command.startswith("/opt/ironcd/.venv/bin/ironcd --config /etc/ironcd/ironcd.toml up")
    assert set(re.findall(r"--only (\S+)", command)) <= set(PROCESSES)


def test_the_sample_unit_that_drains_calls_commands_that_exist_and_leaves_them_time() -> None:
    unit = DRAIN_UNIT.read_text()
    commands = dict(
        re.findall(r"^Exec(Start|Stop)=/opt/ironcd/.venv/bin/ironcd --config \S+ hosts (.+)$", unit, re.MULTILINE)
    )
    hosts = typer.main.get_command(app).commands["hosts"]  # type: ignore[attr-defined]
    for words in commands.values():
        name, *arguments = words.split()
        parsed = hosts.commands[name].make_context(name, arguments)
        assert parsed.params["this"] is True, "a host holds no admin's token"
        deadline = parsed.params.get("deadline", "0s")
    assert set(commands) == {"Start", "Stop"}
    (limit,) = re.findall(r"^TimeoutStopSec=(\d+)min$", unit, re.MULTILINE)
    assert int(limit) * 60 > length(deadline, "--deadline") + NOTICE_S + hosts_drain.STUCK_S
    others = {path.name for path in DRAIN_UNIT.parent.glob("*.service")} - {DRAIN_UNIT.name, "ironcd-control.service"}
    after = set(" ".join(re.findall(r"^After=(.+)$", unit, re.MULTILINE)).split())
    assert others <= after, "what it needs must not be stopped before it"


def test_sample_configurations_are_accepted(tmp_path: Path) -> None:
    samples = [
        sample
        for page in ("install.md", "capacity.md")
        for sample in re.findall(
            r"^```toml\n(.*?)^```", (ROOT / "docs/operations" / page).read_text(), re.DOTALL | re.MULTILINE
        )
    ]
    assert len(samples) == 4
    for sample in samples:
        assert tomllib.loads(sample)
        file = tmp_path / "ironcd.toml"
        file.write_text(sample)
        settings.load(file)


def test_sample_policies_are_accepted() -> None:
    samples = [
        (page, sample)
        for page in (ROOT / "docs/reference/policy.md", ROOT / "docs/operations/install.md")
        for sample in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    assert len(samples) >= 2
    for page, sample in samples:
        read_policy(sample, source=page.name, presets=load_presets())
