"""Has cloud-init's process ready before its first stage, so that a machine waits at its gate with everything loaded.

Python runs this in the one process whose unit names this folder (`cloud-init-main.service.d`), before cloud-init's own
first line, and in no other: what cloud-init starts doesn't get the variable.  Its stages find imported what they import by name,
and asked already what they ask the machine once, by a program's start each.  Two things are set: YAML is read by PyYAML's own
parser in C, some ten times as quick as the one in Python (cloud-init reads its configuration anew some thirty times), and
the table of links and routes that it only prints, after asking three programs, is left out.  What fails here leaves cloud-init as
quick as it would be without.
"""

import contextlib
import gc
import importlib
import os
import sys
from typing import Any

_MODULES = (
    "cloudinit.cmd.main",
    "cloudinit.config.cc_bootcmd",
    "cloudinit.config.cc_runcmd",
    "cloudinit.config.cc_scripts_user",
    "cloudinit.config.cc_set_hostname",
    "cloudinit.config.cc_write_files",
    "cloudinit.distros.debian",
    "cloudinit.distros.parsers.hostname",
    "cloudinit.mergers.m_dict",
    "cloudinit.mergers.m_list",
    "cloudinit.mergers.m_str",
    "cloudinit.net.networkd",
    "cloudinit.sources.DataSourceNoCloud",
    "cloudinit.sources.DataSourceNone",
    "email.generator",
    "logging.config",
)


def _prepare() -> None:
    for name in _MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # Tried once for each file that is written, where it isn't there to be found.
    modules: dict[str, Any] = sys.modules
    modules.setdefault("selinux", None)
    yaml, util = modules["yaml"], modules["cloudinit.util"]
    yaml.SafeLoader = yaml.CSafeLoader
    modules["cloudinit.netinfo"].debug_info = _no_table
    util.system_info()
    util.is_container()
    # What is there now stays until the process ends; a collection would write to each of its pages, which are the template's.
    gc.freeze()
    gc.disable()


def _no_table(prefix: str = "") -> str:
    return f"{prefix}not listed"


os.environ.pop("PYTHONPATH", None)
with contextlib.suppress(Exception):
    _prepare()
