"""From the parts of a page to one file of HTML, which needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from ph_l2o.palette import Look
from ph_l2o.reports.parts import Page

_HERE = Path(__file__).parent


def html(page: Page) -> str:
    """The page as one file.

    What comes from files is escaped by the template, or inside a block of JSON that is no script; and the page's policy
    allows only its own two scripts, by their hashes, and no connection.
    """
    charts = [part for section in page.sections for part in section.parts if part.kind == "charts"]
    data = json.dumps([[chart.data() for chart in part.charts] for part in charts], separators=(",", ":"))
    scripts = [_own("uplot/uPlot.iife.min.js"), _own("templates/page.js")]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    return _template().render(
        page=page,
        scripts=scripts,
        styles=[_own("uplot/uPlot.min.css"), _own("templates/page.css")],
        policy="default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        "script-src " + " ".join(f"'sha256-{h}'" for h in hashes),
        data=data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        groups={id(part): k for k, part in enumerate(charts)},
    )


@cache
def _own(name: str) -> str:
    return (_HERE / name).read_text().strip()


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters["dashes"] = _dashes
    found.filters["ident"] = id
    return found.get_template("page.html")


def _dashes(look: Look) -> str:
    return " ".join(f"{2.5 * d:g}" for d in look.dashes)
