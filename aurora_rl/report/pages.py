"""How the HTML pages are made: templates in which all text is escaped, and how numbers look in them.

Each page extends `templates/base.html.j2` and is put together from `templates/sections.html.j2`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from aurora_rl.files.atomic import write_whole
from aurora_rl.tasks.prompts import SEG_TOKEN


def page_environment(room: str = "aurora_rl.report") -> jinja2.Environment:
    """The templates of a room; all that is put into a page is escaped, except the charts' SVG."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(room),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {"number": _number, "signed": _signed, "mark_seg": _mark_seg}
    environment.filters.update(filters)
    return environment


def write_page(out_html: str | Path, template: str, **values: Any) -> Path:
    """Write a page, one file that loads nothing.

    Args:
        out_html: where to.
        template: name of its template.
        values: what the template asks for.

    Returns:
        `out_html`.
    """
    html = page_environment().get_template(template).render(**values)
    write_whole(out_html, re.sub(r"\n\s*\n+", "\n", html))
    return Path(out_html)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value: float, digits: int = 3) -> str:
    """With its sign, as typeset: a true minus, and no sign for what rounds to zero."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def _mark_seg(text: str) -> Markup:
    """Escaped text in which `[SEG]` stands out."""
    return Markup(str(Markup.escape(text)).replace(SEG_TOKEN, f'<span class="seg">{SEG_TOKEN}</span>'))
