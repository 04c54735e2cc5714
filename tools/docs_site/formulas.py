r"""MkDocs hook: formulas become SVG when the site is built, by matplotlib, so that a page loads no script for them.

`pymdownx.arithmatex` marks them: `$J_t$` becomes `<span class="arithmatex">\(J_t\)</span>`, which is replaced here.
"""

from __future__ import annotations

import functools
import html
import logging
import re

from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
#: TeX that matplotlib does not know, and its replacement.
REPLACEMENTS = [
    (re.compile(r"\\operatorname\*"), r"\\operatorname"),
    (re.compile(r"\\[Bb]igg?([\[(])"), r"\\left\1"),
    (re.compile(r"\\[Bb]igg?([\])])"), r"\\right\1"),
    (re.compile(r"\\sum(_\w|_\{[^}]*\})?"), r"\g<0>\\,"),  # more space after a sum
    (re.compile(r"\s+"), " "),
]
logging.getLogger("matplotlib.mathtext").setLevel(logging.ERROR)  # it logs each letter from a second font
EM = 100.0  # points an em, in which outlines are drawn
SCALE = 1.12  # the formulas' letters are lower than the text's
LETTERS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C", Outline.CLOSEPOLY: "Z"}


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the page's formulas by drawings."""

    def draw(formula: re.Match[str]) -> str:
        tex = html.unescape(formula["tex"]).strip()
        try:
            drawing = draw_formula(tex, display=formula["tag"] == "div")
        except ValueError as error:
            raise PluginError(f"{page.file.src_uri}: matplotlib cannot set the formula {tex!r}: {error}") from error
        return f'<{formula["tag"]} class="formula">{drawing}</{formula["tag"]}>'

    return FORMULA.sub(draw, content)


@functools.cache
def draw_formula(tex: str, *, display: bool = False) -> str:
    """Draw a formula as an SVG element in the colour of the text, as high as the letters beside it.

    Args:
        tex: the formula, without dollar signs.
        display: whether it has its own line, where fractions have full size.

    Raises:
        ValueError: if matplotlib does not know a part of it.
    """
    known = tex.replace(r"\frac", r"\dfrac") if display else tex
    for pattern, replacement in REPLACEMENTS:
        known = pattern.sub(replacement, known)
    font = FontProperties(size=EM, math_fontfamily="stix")
    parsed = MathTextParser("path").parse(f"${known}$", dpi=72, prop=font)
    outline = TextPath((0, 0), f"${known}$", prop=font)
    width, height, depth = parsed.width, parsed.height, parsed.depth  # the height above the baseline and below it
    em = EM / SCALE
    style = f"width:{width / em:.3f}em;height:{height / em:.3f}em;vertical-align:{-depth / em:.3f}em"
    return (
        f'<svg role="img" aria-label="{html.escape(tex)}" style="{style}" fill="currentColor" '
        f'viewBox="0 {depth - height:.1f} {width:.1f} {height:.1f}">'
        f'<path transform="scale(1,-1)" d="{_path_data(outline)}"/></svg>'
    )


def _path_data(outline: Outline) -> str:
    steps = []
    for vertices, code in outline.iter_segments(simplify=False):
        numbers = "" if code == Outline.CLOSEPOLY else " ".join(f"{number:.1f}" for number in vertices)
        steps.append(LETTERS[code] + numbers)
    return "".join(steps)
