"""Config dataclasses from the plain values that JSON holds: the inverse of `dataclasses.asdict`.

Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, get_args, get_type_hints

Config = TypeVar("Config")


def from_plain(cls: type[Config], values: dict[str, Any]) -> Config:
    """A config dataclass from plain values; nested configs by the types of its fields, lists become tuples.

    Raises ValueError for unknown or missing fields.
    """
    unknown = values.keys() - _names(cls)
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}: the file was written by another version")
    hints = get_type_hints(cls)
    built = {name: _value(hints[name], value, f"{cls.__name__}.{name}") for name, value in values.items()}
    try:
        return cls(**built)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error


def _value(hint: Any, value: Any, name: str) -> Any:
    if isinstance(value, list):
        return tuple(_value(hint, item, name) for item in value)
    if not isinstance(value, dict):
        return value
    nested: list[Any] = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
    if not nested:
        raise ValueError(f"{name} holds no fields: the file was written by another version")
    return from_plain(next((kind for kind in nested if value.keys() <= _names(kind)), nested[0]), value)


def _names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}
