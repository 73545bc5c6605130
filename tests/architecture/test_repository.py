"""What must hold for every file of the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from orchestrator.surface import reference

ROOT = Path(__file__).resolve().parents[2]
# Put together from pieces, so that this file doesn't hold what it looks for.
REGISTRIES = ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "npmjs" + ".com", "debian" + ".org")
HOME_FOLDERS = ("/" + "root/", "/" + "work/", "/" + "home/")
LONGEST_FILE = 500


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    ).stdout.decode()
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked():
        try:
            found.append((path, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


@pytest.mark.parametrize("host", REGISTRIES)
def test_no_file_names_a_registry_that_developers_install_from(host):
    pattern = re.compile(rf"(?<![\w-])(?:[\w-]+\.)*{re.escape(host)}(?![\w-])", re.IGNORECASE)
    assert [f"{path.relative_to(ROOT)}: {m[0]}" for path, text in texts() for m in pattern.finditer(text)] == []


def test_no_file_has_a_path_of_a_development_machine():
    pattern = re.compile(r"(?<![\w./{}$-])(?:" + "|".join(HOME_FOLDERS) + r")[\w.-]")
    exempt = {"LICENSE", "init"}  # the initrd mounts the guest's root under /root
    found = [
        f"{path.relative_to(ROOT)}:{text[: m.start()].count(chr(10)) + 1}: {m[0]}"
        for path, text in texts()
        if path.name not in exempt and "tests/data" not in str(path)
        for m in pattern.finditer(text)
        # The guest's own user has its home there: a path inside the virtual machine.
        if not text[m.start() :].startswith("/" + "home/runner")
    ]
    assert found == []


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_generated_pages_are_in_step(name):
    page = (ROOT / reference.FOLDER / name).read_text(encoding="utf-8")
    assert page == reference.PAGES[name](), f"{name} is out of step: run `make docs`"


def test_files_of_the_product_stay_small():
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("orchestrator", "runner_image", "policies")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert long == {}


def test_every_program_is_started_with_an_argument_list():
    pattern = re.compile(r"shell\s*=\s*True|os\.system\(|os\.popen\(|create_subprocess_shell")
    found = [
        f"{path.relative_to(ROOT)}: {m[0]}"
        for path, text in texts()
        if path.suffix == ".py" and path.parts[len(ROOT.parts)] != "tests"
        for m in pattern.finditer(text)
    ]
    assert found == []
