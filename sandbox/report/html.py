"""The report as one HTML file that opens offline: no script, no font, nothing fetched.

Everything that comes from the document goes through `markup`, which escapes it; the page's own policy forbids scripts
and any request besides.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from sandbox.report import charts, figures, tables
from sandbox.report.figures import NOTHING
from sandbox.report.markup import Markup, element, join, text
from sandbox.report.tables import Table
from sandbox.results import Document, IsolationCheck, LevelInfo, Sample, Verdict, dumps

STYLE = Path(__file__).with_name("report.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_LOOKS = {
    Verdict.ISOLATED: ("good", "●"),
    Verdict.HELD: ("good", "●"),
    Verdict.PARTIAL: ("part", "◐"),
    Verdict.SHARED: ("bad", "○"),
    Verdict.NOT_HELD: ("bad", "○"),
    Verdict.UNKNOWN: ("none", "?"),
}
"""Class and sign of a verdict: with its word, three ways to tell it, two of them without colour."""


def render(document: Document) -> str:
    """The whole page."""
    title = f"{document.plan.workload} behind every wall"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="generator", content=f"sandbox {document.sandbox_version}"),
        element("title", text(title)),
        element("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    sections = [_startup(document)]
    if document.plan.duration_s:
        sections.append(_load(document))
    if document.isolation:
        sections.append(_isolation(document))
    sections += [_method(document), _raw(document)]
    body = element(
        "body",
        element("header", *_header(document, title)),
        element("main", _cards(document), _warnings(document), *sections),
        element("footer", text(f"Written by sandbox {document.sandbox_version}, document version {document.version}.")),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _header(document: Document, title: str) -> list[Markup]:
    plan = document.plan
    lede = "The same server, root filesystem and limits at every level; every sample is a fresh sandbox."
    parts = [element("h1", text(title)), element("p", text(lede), class_="lede")]
    end = document.finished or "the point where it was cut short"
    when = f"{document.started} to {end} · {plan.samples} samples per level · seed {plan.seed}"
    parts.append(
        element("p", text(f"{when} · {document.host.cpu_model}, kernel {document.host.kernel}"), class_="lede")
    )
    status = tables.status_line(document)
    if status:
        parts.append(element("p", text(status), class_="banner", role="status"))
    return parts


def _cards(document: Document) -> Markup:
    return element("ul", *(_card(document, info) for info in document.levels), class_="cards", aria_label="At a glance")


def _card(document: Document, info: LevelInfo) -> Markup:
    name, bracket, rest = info.label.partition(" (")
    title = [text(name)] + ([element("small", text(f" ({rest}"))] if bracket else [])
    summary = document.summary_of(info.name)
    parts = [element("h2", *title)]
    if not info.available:
        parts.append(element("p", text(f"Not on this host: {info.reason}"), class_="absent"))
        if info.remedy:
            parts.append(element("p", text(f"What mends it: {info.remedy}"), class_="absent"))
        return element("li", *parts, class_=f"level-{info.name}")
    facts = []
    if summary and summary.startup_s:
        facts.append(("first reply after", figures.duration(summary.startup_s.median), summary.startup_ratio))
    if summary and summary.requests_per_s:
        facts.append(("requests per second", figures.digits(summary.requests_per_s.median), summary.throughput_ratio))
    items = []
    for term, value, ratio in facts:
        baseline = info.name == document.plan.baseline
        remark = "baseline" if baseline else figures.ratio(ratio)
        items += [element("dt", text(term)), element("dd", text(value + " "), element("small", text(remark)))]
    if summary and summary.failed:
        items += [
            element("dt", text("failed samples")),
            element("dd", text(f"{summary.failed} of {summary.attempted}")),
        ]
    walls = _wall_count(document, info.name)
    if walls:
        items += [element("dt", text("walls that held")), element("dd", text(walls))]
    parts.append(element("dl", *items) if items else element("p", text("no figure"), class_="absent"))
    return element("li", *parts, class_=f"level-{info.name}")


def _wall_count(document: Document, level: str) -> str | None:
    verdicts = [check.verdict for check in document.isolation if check.level == level]
    judged = [verdict for verdict in verdicts if verdict is not Verdict.UNKNOWN]
    if not judged:
        return "not known" if verdicts else None
    unknown = len(verdicts) - len(judged)
    held = sum(verdict in (Verdict.ISOLATED, Verdict.HELD) for verdict in judged)
    return f"{held} of {len(judged)}" + (f", {unknown} not known" if unknown else "")


def _warnings(document: Document) -> Markup:
    if not document.warnings:
        return join()
    items = [element("li", text(caveat.text)) for caveat in document.warnings]
    return element("section", element("h2", text("Warnings")), element("ul", *items, class_="plain"), class_="warnings")


def _startup(document: Document) -> Markup:
    return element(
        "section",
        element("h2", text("Startup to the first correct reply")),
        element(
            "p",
            text(
                "Left: a small dot per sandbox, a large one for the median, a line for its 95 % interval, on a "
                "logarithmic axis. Right: what each level spends its own time on."
            ),
            class_="note",
        ),
        element("div", charts.startup(document), class_="scroll"),
        _table(tables.startup(document)),
    )


def _load(document: Document) -> Markup:
    table = tables.load(document)
    return element(
        "section",
        element("h2", text(table.title)),
        element("h3", text("Throughput: median, 95 % interval, and every sandbox as a dot")),
        element("div", charts.throughput(document), class_="scroll"),
        element("h3", text("Latency by percentile, logarithmic")),
        element("div", charts.latency(document), class_="scroll"),
        _table(table),
    )


def _isolation(document: Document) -> Markup:
    note = (
        "A probe inside says what it sees; a witness on the host decides. ISOLATED: out of reach from inside. PARTIAL: "
        "some of it is. SHARED: the host's own. HELD and NOT HELD: a limit was pushed past on purpose. UNKNOWN: no "
        "evidence either way."
    )
    checks = list(dict.fromkeys(check.check for check in document.isolation))
    return element(
        "section",
        element("h2", text("Isolation")),
        element("p", text(note), class_="note"),
        _matrix(document, checks),
        element("h3", text("Evidence")),
        *(_evidence(document, name) for name in checks),
    )


def _matrix(document: Document, checks: Sequence[str]) -> Markup:
    found = {(check.check, check.level): check for check in document.isolation}
    levels = [info for info in document.levels if any(level == info.name for _, level in found)]
    head = [element("th", text("check"), scope="col")]
    head += [element("th", text(info.label), scope="col") for info in levels]
    rows = []
    for name in checks:
        cells = [element("th", text(name), scope="row")]
        for info in levels:
            check = found.get((name, info.name))
            cells.append(element("td", _verdict(check) if check else text(NOTHING)))
        rows.append(element("tr", *cells))
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows), class_="matrix")
    return element("div", table, class_="scroll")


def _verdict(check: IsolationCheck) -> Markup:
    look, sign = _LOOKS[check.verdict]
    return element(
        "span",
        element("span", text(sign + " "), aria_hidden="true"),
        text(check.verdict),
        class_=f"verdict {look}",
        title=check.witness,
    )


def _evidence(document: Document, name: str) -> Markup:
    rows = []
    for check in document.isolation:
        if check.check != name:
            continue
        pairs = [
            part
            for key, value in check.evidence.items()
            for part in (element("dt", text(key)), element("dd", text(value)))
        ]
        rows.append(
            element(
                "tr",
                element("th", text(document.info(check.level).label), scope="row"),
                element("td", _verdict(check)),
                element("td", element("dl", *pairs)),
                element("td", text(check.witness)),
            )
        )
    heads = ("level", "verdict", "observed", "how the host judged")
    table = element("table", _head(heads), element("tbody", *rows), class_="text evidence")
    return element("details", element("summary", text(name)), element("div", table, class_="scroll"))


def _method(document: Document) -> Markup:
    items = [element("li", text(line)) for line in tables.method(document)]
    rows = [
        element("tr", element("th", text(name), scope="row"), element("td", text(value)))
        for name, value in tables.host_lines(document)
    ]
    return element(
        "section",
        element("h2", text("Method")),
        element("ul", *items, class_="plain"),
        element("h3", text("Host")),
        element("div", element("table", element("tbody", *rows), class_="text"), class_="scroll"),
    )


def _raw(document: Document) -> Markup:
    heads = ("level", "round", "place", "startup ms", "requests/s", "p50 ms", "p99 ms", "MiB", "remark")
    rows = [_raw_row(document, sample) for sample in document.samples]
    data = base64.b64encode(dumps(document).encode()).decode("ascii")
    link = element(
        "a", text("Save the JSON document"), href=f"data:application/json;base64,{data}", download="results.json"
    )
    table = element("table", _head(heads), element("tbody", *rows))
    return element(
        "section",
        element("h2", text("Raw data")),
        element("p", text("Every sandbox, in the order in which they were measured. "), link, text(" from this page.")),
        element(
            "details",
            element("summary", text(f"{len(document.samples)} samples")),
            element("div", table, class_="scroll"),
        ),
    )


def _raw_row(document: Document, sample: Sample) -> Markup:
    load = sample.load
    remark = sample.error or ("warm-up, not counted" if sample.round == 0 else "")
    memory = NOTHING if sample.memory_bytes is None else figures.digits(sample.memory_bytes / figures.MIB)
    cells = [
        str(sample.round),
        str(sample.position + 1),
        figures.milliseconds(sample.startup_s),
        figures.digits(load.requests_per_s) if load else NOTHING,
        figures.milliseconds(load.latency_s.get("p50")) if load else NOTHING,
        figures.milliseconds(load.latency_s.get("p99")) if load else NOTHING,
        memory,
    ]
    return element(
        "tr",
        element("th", text(document.info(sample.level).label), scope="row"),
        *(element("td", text(cell)) for cell in cells),
        element("td", text(remark), class_="remark"),
    )


def _table(table: Table) -> Markup:
    rows = []
    for row in table.rows:
        cells = [element("td", text(cell)) for cell in row.cells]
        if not cells:
            cells = [element("td", text(row.remark), colspan=len(table.head) - 1, class_="remark")]
        rows.append(element("tr", element("th", text(row.label), scope="row"), *cells))
    notes = [element("p", text(note[0].upper() + note[1:] + "."), class_="note") for note in table.notes]
    body = element("table", _head([_sentence(name) for name in table.head]), element("tbody", *rows))
    return join(element("div", body, class_="scroll"), *notes)


def _sentence(name: str) -> str:
    """A head without capitals, which are for terminals; units and labels keep theirs."""
    return " ".join(word.lower() if word.isupper() and len(word) > 3 else word for word in name.split(" "))


def _head(names: Sequence[str]) -> Markup:
    return element("thead", element("tr", *(element("th", text(name), scope="col") for name in names)))
