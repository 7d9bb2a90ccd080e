"""Builds HTML and SVG as text in which nothing is unescaped: text is escaped where it goes in, always."""

from __future__ import annotations

from html import escape
from typing import NewType

from sandbox.report.figures import plain

Markup = NewType("Markup", str)
"""Text that was built here. Everything else is escaped."""

_VOID = frozenset({"meta", "br", "link", "line", "rect", "circle", "path", "polyline"})


def element(name: str, /, *children: Markup, **attributes: str | float | None) -> Markup:
    """An element with children.

    Args:
        name: its tag.
        children: built markup; text goes through `text`.
        attributes: underscores stand for hyphens, one at the end is dropped (`class_`); None leaves one out.
    """
    opening = name + "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(plain(_value(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{opening}>" if name in ("meta", "br", "link") else f"<{opening}/>")
    return Markup(f"<{opening}>{''.join(children)}</{name}>")


def text(content: str) -> Markup:
    """Text that a browser shows as it is."""
    return Markup(escape(plain(content)))


def join(*parts: Markup) -> Markup:
    """Siblings."""
    return Markup("".join(parts))


def _value(value: str | float) -> str:
    # Two decimals are a hundredth of a pixel.
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
