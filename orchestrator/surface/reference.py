"""Generates pages of ``docs/reference/``: configuration, command and presets, out of what they describe.

``python -m orchestrator.surface.reference`` writes them; a test says where a page is out of step.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperArgument, TyperGroup, TyperOption

from orchestrator.control.settings import Pace
from orchestrator.core.machine import MachineClass
from orchestrator.core.runner import Deadlines
from orchestrator.core.settings import HostSettings
from orchestrator.surface.settings import PREFIX, Settings
from policies.reference import presets_page

FOLDER = Path("docs/reference")
_MADE = "<!-- Made by `make docs` from {source}. Edit that, not this page. -->"

_INTRO = """\
# Configuration

One TOML file: the one named by `--config` or `IRONCD_CONFIG`, or `/etc/ironcd/ironcd.toml` where it exists. Each key can be
set by an environment variable too, which wins over the file: `IRONCD_<SECTION>__<KEY>`, lists and tables as JSON
(`IRONCD_HOST__UPSTREAM_DNS='["10.0.0.53"]'`).

An unknown key or variable is an error, and so is a value of the wrong kind. Secrets have files of their own, which
`..._file` keys name; none stands here.
"""
_CLASSES = """\
Each table is a size of machine, asked for by the label `ironcd-NAME`; `[classes.default]` is what the plain label `ironcd`
asks for. A label such as `ironcd-4cpu-16gb` needs no class: it is the default one with that size.
"""
_NESTED: dict[str, type | None] = {"deadlines": Deadlines, "pace": Pace, "repository": None, "organisation": None}
_EXAMPLE = """\
## Example

```toml
[github]
app_id = 123456

[host]
name = "metal-1"
upstream_dns = ["10.0.0.53"]

[classes.default]
vcpus = 2
memory_mib = 8192

[classes.gpu]
vcpus = 8
memory_mib = 32768
gpus = 1
lifetime_s = 14400
```
"""


def configuration_page() -> str:
    parts = [_MADE.format(source="orchestrator/surface/settings.py and orchestrator/core"), "", _INTRO]
    for name, field in Settings.model_fields.items():
        if name == "classes":
            parts += ["## `[classes.NAME]`", "", _CLASSES, _table(_section(_value_type(field)), "", MachineClass)]
        else:
            parts += _section_parts(name, field)
    return "\n".join([*parts, _EXAMPLE])


def _section_parts(name: str, field: FieldInfo) -> list[str]:
    section = _section(field.annotation)
    parts = [f"## `[{name}]`", "", _table(section, name, HostSettings if name == "host" else None)]
    for key, inner in section.model_fields.items():
        if key in _NESTED:
            parts += [f"### `[{name}.{key}]`", "", _line(inner.description or ""), ""]
            parts += [_table(_section(inner.annotation), f"{name}__{key}", _NESTED[key])]
    return parts


def _value_type(field: FieldInfo) -> Any:
    return get_args(field.annotation)[1]


def _section(annotation: Any) -> type[BaseModel]:
    assert isinstance(annotation, type)
    assert issubclass(annotation, BaseModel)
    return annotation


def _table(section: type[BaseModel], name: str, struct: type | None) -> str:
    texts = attribute_docstrings(struct) if struct is not None else {}
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in section.model_fields.items():
        if key in _NESTED:
            continue
        text = _line(field.description or texts.get(key, ""))
        default = "the machine's name" if (name, key) == ("host", "name") else _default(field)
        lines.append(f"| `{key}` | {_type_name(field.annotation)} | {default} | {text} |")
    if name:
        lines += ["", f"Environment: `{PREFIX}{name.upper()}__<KEY>`."]
    return "\n".join([*lines, ""])


def _line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Path):
        return f"`{str(value)!r}`".replace("'", '"')
    if isinstance(value, tuple):
        value = [str(item) if isinstance(item, Path) else item for item in value]
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value!r}`".replace("'", '"')


def _type_name(annotation: Any) -> str:
    """A type in the words of TOML."""
    arguments = get_args(annotation)
    if type(None) in arguments:
        return _type_name(next(item for item in arguments if item is not type(None)))
    origin = get_origin(annotation)
    if origin in (tuple, list):
        return f"list of {_type_name(arguments[0])}s"
    if origin is dict:
        return f"table of {_type_name(arguments[1])}s"
    if arguments:
        return " or ".join(f'`"{item}"`' for item in arguments)
    return {str: "string", int: "integer", float: "number", bool: "boolean", Path: "path"}.get(annotation, "table")


def attribute_docstrings(cls: type) -> dict[str, str]:
    """The strings that stand under a class's attributes, by attribute."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if not isinstance(before, ast.AnnAssign) or not isinstance(before.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found[before.target.id] = inspect.cleandoc(after.value.value)
    return found


def cli_page() -> str:
    from orchestrator.surface.cli.app import app

    root = typer.main.get_command(app)
    parts = [_MADE.format(source="orchestrator/surface/cli"), "", "# The `ironcd` command", ""]
    parts += [
        "Exit status: 0 it worked; 1 the machine or a service stands in the way, or a check failed; 2 what was asked for can't be",
        "done as asked. Errors go to standard error: a message, a remedy, and a link.",
        "",
    ]
    parts += _command_section(root, "ironcd", top=True)
    return "\n".join(parts)


def _command_section(command: Any, path: str, *, top: bool = False) -> list[str]:
    parts: list[str] = []
    if top or not isinstance(command, TyperGroup):
        parts += [f"## `{path}`", "", _prose(command.help or ""), "", *_parameters(command)]
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            parts += _command_section(child, f"{path} {name}")
    return parts


def _prose(text: str) -> str:
    """Help text without Rich's markup; examples as code."""
    return re.sub(r"\[bold\](.*?)\[/bold\]", r"`\1`", inspect.cleandoc(text))


def _parameters(command: Any) -> list[str]:
    lines = []
    for parameter in command.params:
        if isinstance(parameter, TyperOption) and {"--install-completion", "--show-completion"} & set(parameter.opts):
            continue
        text = " ".join((getattr(parameter, "help", None) or "").split())
        if isinstance(parameter, TyperArgument):
            lines.append(f"| `{parameter.metavar or str(parameter.name).upper()}` | {text} |")
        else:
            lines.append(f"| `{', '.join([*parameter.opts, *parameter.secondary_opts])}` | {text} |")
    return ["| option | meaning |", "| --- | --- |", *lines, ""] if lines else []


PAGES = {"configuration.md": configuration_page, "cli.md": cli_page, "presets.md": presets_page}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
