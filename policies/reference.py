"""The page ``docs/reference/presets.md``, made of the presets that it lists."""

from __future__ import annotations

from orchestrator.core.presets import Preset, PresetEntry
from policies import load_presets

_INTRO = """\
# Presets

A policy names one with `{preset: NAME}` ([policy.md](policy.md)). A name in brackets is another word for it, which the
error message for an unknown preset knows. Everything is HTTPS on port 443 where no port is given.

*Shared*: anyone can get a name or an account there, or upload with a token of theirs; connections are flagged
`multi_tenant` in the record. *Unverified*: no document says so, experience does.
"""


def presets_page() -> str:
    presets = load_presets()
    made = "<!-- Made by `make docs` from policies/presets. Edit those, not this page. -->"
    return "\n".join([made, "", _INTRO, *(_section(presets.by_name[name]) for name in presets.names)])


def _section(preset: Preset) -> str:
    aka = f" [{', '.join(preset.aka)}]" if preset.aka else ""
    lines = [f"## `{preset.name}`{aka}", "", f"Version {preset.version}. {preset.description}"]
    if preset.builtin:
        lines += ["", "In every policy, in every phase; nothing denies it."]
    if preset.from_image:
        lines += ["", "What the package manager in the image is set up with is added when the image is built."]
    if preset.entries:
        lines += ["", "| where | why | | source |", "| --- | --- | --- | --- |"]
        lines += [_row(entry) for entry in preset.entries]
    return "\n".join([*lines, ""])


def _row(entry: PresetEntry) -> str:
    where = f"`{entry.host}`" if entry.host else f"`{entry.cidr}` port {', '.join(map(str, entry.ports))}"
    marks = [word for word, said in (("shared", entry.multi_tenant), ("unverified", not entry.verified)) if said]
    source = f"<{entry.source}>" if entry.source.startswith("https://") and " " not in entry.source else entry.source
    return f"| {where} | {entry.comment} | {', '.join(marks)} | {source} |"
