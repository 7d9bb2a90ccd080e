"""`python -m tools.picture out/report.html docs/report.svg` takes the README's picture from a report."""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHARTS = ("startup", "throughput")
WIDTH = 900
_GAP, _TITLE = 16, 28


def picture(page: str) -> str:
    """Return the charts of a report's page, one below the other, as one SVG document.

    Raises:
        ValueError: the page has no such chart.
    """
    style = page[page.index("<style>") + len("<style>") : page.index("</style>")]
    top, parts = 0.0, []
    for name in CHARTS:
        found = re.search(rf'<svg viewBox="0 0 (\d+) (\d+)"[^>]*class="chart {name}">(.*?)</svg>', page, re.DOTALL)
        if found is None:
            raise ValueError(f"the page has no chart {name!r}")
        width, height, content = float(found[1]), float(found[2]), found[3]
        scale = WIDTH / width
        title = f'<text x="12" y="{top + 20:.0f}" class="label">{name.capitalize()}</text>'
        place = f'<g class="chart {name}" transform="translate(0 {top + _TITLE:.0f}) scale({scale:.3f})">'
        parts.append(f"{title}{place}{content}</g>")
        top += _TITLE + height * scale + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" font-family="sans-serif">\n'
        f"<style>{style}</style>\n"
        f'<rect width="{WIDTH}" height="{top:.0f}" fill="var(--card)"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(picture(source.read_text(encoding="utf-8")), encoding="utf-8")
