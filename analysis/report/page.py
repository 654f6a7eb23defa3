"""Pages from templates: everything is escaped but the charts, which are made here."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from kvload import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """A chart with its title and a note."""

    title: str
    svg: str
    note: str = ""


def figures(parts: Iterable[tuple[str, str, str]]) -> list[Figure]:
    """Title, chart and note of each figure, those without a chart left out."""
    return [Figure(title, svg, note) for title, svg, note in parts if svg]


def render(template: str, *, title: str, **context: Any) -> str:
    """A whole page.

    Args:
        template: its name in ``templates/``.
        title: plain text, for the page's head and its first line.
        context: what the template shows. Texts are escaped; SVG is put in as it is, where the template says so.
    """
    values = {"title": title, "version": __version__, "style": style(), "toc": []} | context
    return _environment().get_template(template).render(values) + "\n"


@cache
def style() -> str:
    """The style sheet of pages and of pictures that stand alone."""
    from markupsafe import Markup

    text = (resources.files(__package__) / "templates" / "style.css").read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704  it is our own file


def anchor(title: str) -> str:
    """A title as the target of a link."""
    return re.sub(r"[\W_]+", "-", title.lower()).strip("-")


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("kvload.analysis.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["anchor"] = anchor
    return found
