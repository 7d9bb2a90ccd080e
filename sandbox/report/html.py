"""Render the report as one HTML file that opens offline, without scripts, fonts or requests.

The template page.html escapes everything from the document; the page's Content-Security-Policy also forbids scripts and
requests.
"""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sandbox.report import charts, figures, tables
from sandbox.results import PHASES, Document, Verdict, dumps

_LOOKS = {
    Verdict.ISOLATED: ("good", "●"),
    Verdict.HELD: ("good", "●"),
    Verdict.PARTIAL: ("part", "◐"),
    Verdict.SHARED: ("bad", "○"),
    Verdict.NOT_HELD: ("bad", "○"),
    Verdict.UNKNOWN: ("none", "?"),
}
"""The CSS class and the sign of a verdict. The sign, like the word, does not depend on colour."""


def render(document: Document) -> str:
    """Render the page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sentence"] = _sentence
    environment.globals.update(charts=charts, figures=figures, tables=tables, PHASES=PHASES)
    return environment.get_template("page.html").render(
        document=document,
        checks=list(dict.fromkeys(check.check for check in document.isolation)),
        verdicts={(check.check, check.level): check for check in document.isolation},
        looks=_LOOKS,
        passed=lambda level: _passed(document, level),
        data=base64.b64encode(dumps(document).encode()).decode("ascii"),
    )


def _shown(value: object) -> object:
    """Convert a value for the page, before it is escaped."""
    if isinstance(value, float):  # two decimals are a hundredth of a pixel
        return f"{value:.2f}".rstrip("0").rstrip(".")
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return figures.plain(value)
    return value


def _passed(document: Document, level: str) -> str | None:
    verdicts = [check.verdict for check in document.isolation if check.level == level]
    judged = [verdict for verdict in verdicts if verdict is not Verdict.UNKNOWN]
    if not judged:
        return "not known" if verdicts else None
    unknown = len(verdicts) - len(judged)
    held = sum(verdict in (Verdict.ISOLATED, Verdict.HELD) for verdict in judged)
    return f"{held} of {len(judged)}" + (f", {unknown} not known" if unknown else "")


def _sentence(name: str) -> str:
    """Convert a column's head to lower case, except for units and labels; capitals are for terminals."""
    return " ".join(word.lower() if word.isupper() and len(word) > 3 else word for word in name.split(" "))
