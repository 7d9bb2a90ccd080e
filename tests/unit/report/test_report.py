"""The output of a comparison in each format."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.report import charts, figures, html, markdown, scales, tables, terminal
from sandbox.results import Caveat, Document, Estimate, Sample, Status, Verdict
from tests.unit.documents import comparison

EMULATED = "vm (TCG, emulated)"
NASTY = "<script>alert(1)</script>\x1b[31m|`*&\"'"
VOID = {"meta", "br", "link"}


class Page(HTMLParser):
    """Collects elements, and checks that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def damaged() -> Document:
    """Make a document whose every text is hostile."""
    document = comparison(samples=2, unavailable=("gvisor",), failing=("namespace",))
    document.warnings.append(Caveat("x", NASTY))
    document.levels = [replace(info, label=f"{info.label} {NASTY}") for info in document.levels]
    document.isolation = [
        replace(check, check=NASTY, evidence={NASTY: NASTY}, witness=NASTY) for check in document.isolation
    ]
    document.samples = [replace(sample, error=NASTY) for sample in document.samples]
    document.plan = replace(document.plan, workload=NASTY)
    document.host = replace(document.host, cpu_model=NASTY, versions={NASTY: NASTY})
    return document


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_lines_stay_within_the_terminal(width: int) -> None:
    text = terminal.render(comparison(unavailable=("gvisor",), failing=("vm",)), width=width)
    assert max(len(line) for line in text.splitlines()) <= width


def test_a_level_that_cannot_be_done_is_a_row_with_reason_and_remedy() -> None:
    document = comparison(unavailable=("gvisor",))
    for text in (terminal.render(document), markdown.render(document), html.render(document)):
        flat = re.sub(r"\s+", " ", text)
        assert "gvisor needs an engine that is not installed here" in flat
        assert "sandbox doctor --fix" in flat or r"sandbox doctor \-\-fix" in flat


def test_the_emulated_machine_is_labelled_wherever_it_appears() -> None:
    document = comparison()
    text = terminal.render(document, width=120)
    for line in text.splitlines():
        if line.startswith("vm"):
            assert line.startswith(EMULATED)
    page = Page(html.render(document))
    labels = [attributes["aria-label"] for tag, attributes in page.found if tag == "svg"]
    assert len(labels) == 3
    assert all(label and EMULATED in label for label in labels)
    assert page.words.count(EMULATED) >= 6
    assert "(TCG, emulated)" in page.words, "the rows of the charts say it too"


def test_failed_samples_are_counted_in_the_row_and_told_in_the_warnings() -> None:
    text = terminal.render(comparison(samples=5, failing=("container",)))
    assert re.search(r"^container .* 4 of 5$", text, re.MULTILINE)
    assert "container: 1 of 5 samples failed and are not in the figures; first: the server died" in re.sub(
        r"\s+", " ", text
    )


def test_a_level_that_always_failed_has_no_figure() -> None:
    document = comparison(samples=1)
    document.samples = [
        replace(sample, error="died", startup_s=None, load=None) if sample.level == "vm" else sample
        for sample in document.samples
    ]
    from sandbox.measure import summary

    document.summary = summary.summarise(document)
    assert "all 1 samples failed" in terminal.render(document)
    assert "no figure: every sample failed" in html.render(document)


def test_an_incomplete_run_says_so_first() -> None:
    document = comparison(samples=4)
    document.status = Status.INCOMPLETE
    document.samples = document.samples[:13]
    expected = "INCOMPLETE: the run was interrupted after 8 of 20 samples"
    assert terminal.render(document).splitlines()[1] == expected
    assert expected in html.render(document)
    assert f"**{expected}**" in markdown.render(document)


def test_there_is_a_colour_only_where_asked() -> None:
    document = comparison()
    assert "\x1b" not in terminal.render(document)
    coloured = terminal.render(document, colour=True)
    assert "\x1b[31m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == terminal.render(document)


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert "\x1b" not in terminal.render(damaged())


def test_markdown_tables_cannot_be_broken() -> None:
    text = markdown.render(damaged())
    assert not re.search(r"(?<!\\)<script", text)
    for line in text.splitlines():
        if line.startswith("| ") and "STARTUP" in line:
            assert line.replace(r"\|", "").count("|") == 12


def test_html_is_well_formed_and_escapes_everything() -> None:
    page = Page(html.render(damaged()))
    assert "script" not in {tag for tag, _ in page.found}
    assert all(not name.startswith("on") for _, attributes in page.found for name in attributes)
    assert "\x1b" not in html.render(damaged())


def test_html_needs_nothing_from_outside() -> None:
    text = html.render(comparison())
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.found}
    for _, attributes in page.found:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:application/json;base64,")
    policies = [attributes["content"] for _, attributes in page.found if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    assert not re.search(r"url\(|@import", text)


def test_html_has_the_raw_data_in_it() -> None:
    import base64

    from sandbox import results

    document = comparison(samples=2)
    page = Page(html.render(document))
    (link,) = [attributes["href"] for tag, attributes in page.found if tag == "a"]
    assert link is not None
    assert results.loads(base64.b64decode(link.partition(",")[2])) == document


def test_verdicts_are_told_by_word_sign_and_colour() -> None:
    document = comparison()
    document.isolation = [
        replace(check, verdict=verdict) for check, verdict in zip(document.isolation, list(Verdict) * 9, strict=False)
    ]
    text = html.render(document)
    assert set(html._LOOKS) == set(Verdict)
    for verdict, (look, sign) in html._LOOKS.items():
        assert f'class="verdict {look}"' in text
        assert f"{sign} </span>{verdict}</span>" in text


def test_every_chart_has_a_table_beside_it() -> None:
    page = Page(html.render(comparison()))
    assert sum(tag == "svg" for tag, _ in page.found) == 3
    assert sum(tag == "table" for tag, _ in page.found) >= 5


def test_a_run_without_load_has_no_load_section() -> None:
    document = comparison(samples=2)
    document.plan = replace(document.plan, duration_s=0)
    document.samples = [replace(sample, load=None) for sample in document.samples]
    from sandbox.measure import summary

    document.summary = summary.summarise(document)
    assert "Under load" not in terminal.render(document)
    assert sum(tag == "svg" for tag, _ in Page(html.render(document)).found) == 1


def test_a_document_without_any_sample_renders() -> None:
    document = comparison(samples=1)
    document.samples, document.summary, document.isolation = [], [], []
    document.status = Status.INCOMPLETE
    for text in (terminal.render(document), markdown.render(document)):
        assert "no sample was counted" in text
    Page(html.render(document))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.0123456, "0.0123"), (1.2345, "1.23"), (12.345, "12.3"), (2843.2, "2,840"), (1234567, "1,230,000")],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert figures.digits(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0000123, "12.3 µs"), (0.0123, "12.3 ms"), (1.234, "1.23 s"), (0.9999, "1,000 ms")]
)
def test_durations_have_the_unit_that_fits(seconds: float, shown: str) -> None:
    assert figures.duration(seconds) == shown


def test_nothing_is_a_dash_and_never_a_zero() -> None:
    assert figures.middle(None) == "–"
    assert figures.interval(Estimate(1, None, None, 1)) == "–"
    assert figures.ratio(None) == "–"


@given(st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=1, max_size=30))
def test_axes_hold_all_values_in_order(values: list[float]) -> None:
    for axis in (scales.logarithmic(values, 0, 100), scales.linear(values, 0, 100)):
        pixels = [axis.at(value) for value in sorted(values)]
        assert pixels == sorted(pixels)
        assert 0 <= pixels[0] <= pixels[-1] <= 100.0001
        assert 1 <= len(axis.ticks) <= 14 or axis.logarithmic
        assert all(axis.low <= tick <= axis.high * (1 + 1e-9) for tick in axis.ticks)


def test_bars_start_at_zero() -> None:
    assert scales.linear([61_000, 5_000], 10, 110).at(0) == 10


@given(st.lists(st.floats(min_value=0, max_value=300), max_size=8))
def test_labels_do_not_cover_each_other(wanted: list[float]) -> None:
    placed = charts._spread(wanted, 17)
    assert len(placed) == len(wanted)
    ordered = sorted(placed)
    assert all(after - before > 16.9 for before, after in pairwise(ordered))


def test_the_raw_table_shows_the_warm_up_as_such() -> None:
    document = comparison(samples=1)
    warm: Sample = document.samples[0]
    assert warm.round == 0
    assert "warm-up, not counted" in html.render(document)


def test_the_baseline_has_no_interval_of_its_own_ratio() -> None:
    table = tables.startup(comparison())
    assert table.rows[0].cells[2:4] == ("1", "–")
