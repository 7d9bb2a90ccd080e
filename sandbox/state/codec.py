"""Strict decoder of JSON into dataclasses; the dataclass is the schema.

Values are not converted, except an integer to a float; missing keys have no defaults, and unknown keys are errors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from enum import StrEnum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints


class MismatchError(ValueError):
    """A value does not have the type of its schema; the message names its place."""


def parse(text: str | bytes) -> Any:
    """Parse JSON text strictly by RFC 8259: NaN, Infinity and duplicate keys are errors.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def decode(kind: Any, value: Any, where: str) -> Any:
    """Build a value of type `kind` from JSON types.

    Args:
        kind: a dataclass, a StrEnum, str, int, float, bool, list[...], dict[..., ...], tuple[..., ...], a tuple of
            fixed length, or a union of one of these and None. A tuple is a list in JSON.
        value: a result of `parse`, or a part of one.
        where: the value's place, for messages.

    Raises:
        MismatchError: a key is missing or unknown, or a value is of another type.
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (choice for choice in get_args(kind) if choice is not type(None))
        return decode(kind, value, where)
    if origin is list:
        (item,) = get_args(kind)
        return [decode(item, entry, f"{where}[{index}]") for index, entry in enumerate(_typed(list, value, where))]
    if origin is tuple:
        items = get_args(kind)
        if items[1:] == (Ellipsis,):
            items = items[:1] * len(_typed(list, value, where))
        if len(_typed(list, value, where)) != len(items):
            raise MismatchError(f"{where} has {len(value)} parts, not {len(items)}")
        return tuple(decode(item, value[index], f"{where}[{index}]") for index, item in enumerate(items))
    if origin is dict:
        name, item = get_args(kind)
        return {
            decode(name, key, where): decode(item, entry, f"{where}.{key}")
            for key, entry in _typed(dict, value, where).items()
        }
    if dataclasses.is_dataclass(kind):
        return _decode_object(kind, _typed(dict, value, where), where)
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise MismatchError(f"{where} is not a finite number") from None
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        try:
            return kind(_typed(str, value, where))
        except ValueError:
            raise MismatchError(f"{where} is {value!r}, not one of {', '.join(kind)}") from None
    return _typed(kind, value, where)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields; cached, because resolving them is slower than decoding a value."""
    return get_type_hints(kind)


def _decode_object(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    for key in hints.keys() - value.keys():
        raise MismatchError(f"{where}.{key} is missing")
    for key in value.keys() - hints.keys():
        raise MismatchError(f"{where}.{key} is unknown")
    return kind(**{key: decode(hint, value[key], f"{where}.{key}") for key, hint in hints.items()})


def _typed(kind: type, value: Any, where: str) -> Any:
    # `type(...) is`, because in Python True is an int too.
    if type(value) is not kind:
        raise MismatchError(f"{where} is {type(value).__name__}, not {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise MismatchError(f"{where} is not a finite number")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON allows but which cannot be printed
            raise MismatchError(f"{where} is not text") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
