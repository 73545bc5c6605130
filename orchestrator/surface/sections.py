"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, create_model


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def section_of(struct: type[msgspec.Struct], *, without: frozenset[str] = frozenset()) -> type[Section]:
    """A section with the keys, types and defaults of one of core's types."""
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        if field.name in without:
            continue
        if field.default is not msgspec.NODEFAULT:
            default = field.default
        elif field.default_factory is not msgspec.NODEFAULT:
            default = Field(default_factory=field.default_factory)
        else:
            default = ...
        fields[field.name] = (field.type, default)
    return create_model(f"{struct.__name__}Section", __base__=Section, **fields)
