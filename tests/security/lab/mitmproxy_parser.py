"""``python -I -S mitmproxy_parser.py FOLDER``: mitmproxy's reading of hellos.  A hello a line in hexadecimal on standard input.

Answers each with ``name NAME`` (no name: the hello has none), ``refused`` or ``more``.  mitmproxy's own code reads them,
unchanged, from FOLDER; what else it imports and doesn't need for that is answered by modules without anything in them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types

NOT_NEEDED = frozenset({"OpenSSL", "certifi", "cryptography", "mitmproxy_rs", "ruamel"})


class Nothing(type):
    """A class that has every attribute: all that a class body or an annotation may ask of a module that isn't there."""

    def __getattr__(cls, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(name, (), {})

    def __call__(cls, *arguments: object, **fields: object) -> object:
        return cls if cls.__bases__ == (object,) else super().__call__(*arguments, **fields)


class Absent(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - what makes it a package

    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(name, (), {})


class Absentees(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in NOT_NEEDED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def main(folder: str) -> None:
    sys.path.insert(0, folder)
    sys.meta_path.append(Absentees())
    layers = types.ModuleType("mitmproxy.proxy.layers")  # the package's own first lines import every protocol there is
    layers.__path__ = [f"{folder}/mitmproxy/proxy/layers"]
    sys.modules[layers.__name__] = layers
    from mitmproxy.proxy.layers.tls import parse_client_hello

    for line in sys.stdin:
        try:
            hello = parse_client_hello(bytes.fromhex(line))
            answer = "more" if hello is None else f"name {hello.sni or ''}"
        except Exception:  # noqa: BLE001 - however it says no
            answer = "refused"
        print(answer, flush=True)  # noqa: T201 - its output


if __name__ == "__main__":
    main(sys.argv[1])
