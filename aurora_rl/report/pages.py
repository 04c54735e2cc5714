"""Writing of HTML pages: templates that escape all text, and the format of numbers.

Each page extends `templates/base.html.j2` and consists of sections of `templates/sections.html.j2`.
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
    """Load the templates of a package; all values on a page are escaped, except the charts' SVG."""
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
    """Write a page as one file that loads no others.

    Args:
        out_html: path of the page.
        template: name of its template.
        values: values of the template's variables.

    Returns:
        `out_html`.
    """
    html = page_environment().get_template(template).render(**values)
    write_whole(out_html, re.sub(r"\n\s*\n+", "\n", html))
    return Path(out_html)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value: float, digits: int = 3) -> str:
    """Format a number with its sign, as in print: a true minus, and no sign if it rounds to zero."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def _mark_seg(text: str) -> Markup:
    """Escape a text and highlight its `[SEG]`."""
    return Markup(str(Markup.escape(text)).replace(SEG_TOKEN, f'<span class="seg">{SEG_TOKEN}</span>'))
