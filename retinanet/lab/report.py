"""A study as one page: its tables and figures beside the paper's, and which conclusions hold here."""

from __future__ import annotations

import base64
import json
import logging
from html import escape
from pathlib import Path
from typing import Any

from .. import text as markdown
from .._version import __version__
from ..errors import ConfigError
from ..files import write_atomically
from ..view.html import document
from .tables import EXPERIMENTS
from .verdicts import conditions, read, table, verdicts

log = logging.getLogger("retinanet")

FIGURES = ("fig1", "fig2", "fig4", "fig5", "fig6", "fig7", "prior", "hinge")
"""In the paper's order, then the curves of ours."""

INTRODUCTION = (
    "The experiments of Lin, Goyal, Girshick, He and Dollar, Focal Loss for Dense Object Detection (2017), "
    "repeated. AP is COCO's, in percent. The paper's is for COCO and its own training length, so only the "
    "order of the rows can be compared, not their height. Differences are paired by seed. A conclusion "
    "holds, or does not, where the whole 95 % interval lies on one side of 0. A training that diverged "
    "counts as AP 0 and is not repeated."
)


def run(folder: Path) -> Path:
    """Write report.html and report.md into a study's folder; returns the page."""
    tables = [name for name in EXPERIMENTS if (folder / f"{name}.json").exists()]
    figures = [name for name in FIGURES if (folder / "figures" / f"{name}.json").exists()]
    if not tables and not figures:
        raise ConfigError(
            f"{folder} holds no results of retinanet lab; run an experiment with --out {folder} first"
        )
    parts = [part(folder, name) for name in tables] + [figure(folder, name) for name in figures]
    sources = sorted({json.loads((folder / f"{name}.json").read_text())["data"] for name in tables})
    title = (
        f"Focal loss, studied on {' and '.join(sources)}" if tables else "Focal loss: the figures of formulas"
    )
    intro = f"{INTRODUCTION} retinanet {__version__}."
    body = "\n".join(f"<section><h2>{escape(one['title'])}</h2>{one['html']}</section>" for one in parts)
    page = folder / "report.html"
    write_atomically(page, document(title, f"<h1>{escape(title)}</h1><p>{escape(intro)}</p>{body}").encode())
    text = "\n\n".join([f"# {title}", intro, *(f"## {one['title']}\n\n{one['markdown']}" for one in parts)])
    write_atomically(folder / "report.md", f"{text}\n".encode())
    log.info("%d tables and %d figures: %s", len(tables), len(figures), page)
    return page


def part(folder: Path, name: str) -> dict[str, str]:
    """A table with its conditions, its verdicts and the machine."""
    content, lines = read(folder / f"{name}.json")
    head, rows = table(lines)
    about = f"{conditions(content, lines)}; {content['machine']}."
    found = [str(verdict) for verdict in verdicts(name, lines)]
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    html = f"<p>{escape(about)}</p><table><thead><tr>{top}</tr></thead><tbody>{cells}</tbody></table>"
    html += "".join(f"<p>{escape(line)}.</p>" for line in found)
    safe = markdown.escaped
    drawn = markdown.table([*map(safe, head)], [[*map(safe, row)] for row in rows])
    text = "\n\n".join([safe(about), drawn, *(f"- {safe(line)}." for line in found)])
    return {"title": f"{label(name)}: {content['title']}", "html": html, "markdown": text}


def figure(folder: Path, name: str) -> dict[str, str]:
    """A figure with its caption, embedded in the page and linked from the Markdown."""
    about: dict[str, Any] = json.loads((folder / "figures" / f"{name}.json").read_text())
    image = base64.b64encode((folder / "figures" / f"{name}.svg").read_bytes()).decode()
    caption, title = escape(about["caption"]), escape(about["title"])
    return {
        "title": f"{label(name)}: {about['title']}",
        "html": f'<figure><img alt="{title}" src="data:image/svg+xml;base64,{image}" '
        f"/>\n<figcaption>{caption}</figcaption></figure>",
        "markdown": f"![{markdown.escaped(about['title'])}](figures/{name}.png)\n\n"
        f"{markdown.escaped(about['caption'])}",
    }


def label(name: str) -> str:
    """table1a -> Table 1a; fig4 -> Figure 4; others are ours."""
    for start, word in (("table", "Table"), ("fig", "Figure")):
        if name.startswith(start):
            return f"{word} {name.removeprefix(start)}"
    return name.capitalize()
