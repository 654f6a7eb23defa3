"""The frame of an HTML report: one file that opens offline, light or dark, on a screen or a phone."""

from collections.abc import Iterable, Sequence
from html import escape

from kvload import __version__
from kvload.analysis.report.tables import Facts, TableData

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2024;--dim:#60666d;--rule:#dfe2e6;--card:#f6f7f9;--floor:#8a9099;
--s0:#0b63b0;--s1:#c2410c;--s2:#0f7a5a;--s3:#9b2c8f;--s4:#8a6d00;--s5:#0e7490;--s6:#b91c3c;--s7:#5b5bd6;
--good:#0f7a3d;--bad:#b91c1c;--warn:#8a6100}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e8ea;--dim:#9aa1a9;--rule:#30363c;--card:#1d2125;
--floor:#7d858e;--s0:#5aa9f2;--s1:#fb923c;--s2:#3ecf9a;--s3:#e083d4;--s4:#e0be3c;--s5:#45c5de;--s6:#fb7185;--s7:#9d9dfb;
--good:#4ade80;--bad:#f87171;--warn:#e0b040}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:1.2rem 1rem 3rem}
h1{font-size:1.5rem;margin:.2rem 0 .6rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
p{margin:.4rem 0}.dim{color:var(--dim)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.4rem 0}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:1rem 1.5rem}
figure{margin:0;max-width:500px}figcaption{font-size:.9rem;font-weight:600;margin-bottom:.2rem}
figure p{font-size:.82rem;color:var(--dim);margin:.2rem 0}
svg{width:100%;height:auto;display:block;font-size:11.5px}
svg text{fill:var(--dim)}svg .title,svg .note{fill:var(--fg)}
.grid{stroke:var(--rule);stroke-width:1;fill:none}.rule{stroke:var(--fg);stroke-dasharray:4 3;stroke-width:1;fill:none}
.line{fill:none;stroke-width:2;stroke:currentColor}
.line.total{stroke:var(--fg);stroke-width:3}.line.thin{stroke-width:1.2;stroke-dasharray:5 3}
.band{fill:currentColor;opacity:.22;stroke:none}.bar{fill:currentColor}.bar.pale{opacity:.45}
.dots{fill:none;stroke:currentColor;stroke-width:4;stroke-linecap:round;opacity:.5}
.dots.hollow{stroke-width:6;opacity:.3}
.s0{color:var(--s0)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}.s4{color:var(--s4)}.s5{color:var(--s5)}
.s6{color:var(--s6)}.s7{color:var(--s7)}.floor{color:var(--floor)}.line.again{stroke-dasharray:7 3}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.88rem;margin:.5rem 0;padding:0;list-style:none}
.legend i{display:inline-block;width:1.1em;height:.6em;margin-right:.4em;background:currentColor;border-radius:2px}
.legend span{color:var(--fg)}
.scroll{overflow-x:auto;margin:.4rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.25rem .7rem;border-bottom:1px solid var(--rule);white-space:nowrap;vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:0}th{color:var(--dim);font-weight:500}
td small{display:block;color:var(--dim);font-size:.8em}
caption{caption-side:bottom;text-align:left;color:var(--dim);font-size:.85rem;padding-top:.3rem}
.card{background:var(--card);border-radius:8px;padding:.7rem 1rem;margin:.7rem 0}.card h3{margin-top:0}
.tag{display:inline-block;min-width:6.5em;font-weight:600}
.better,.good{color:var(--good)}.worse,.bad{color:var(--bad)}.undecided,.unknown{color:var(--warn)}
.same{color:var(--s0)}.differs{color:var(--s3)}.unmeasured{color:var(--dim)}
.finding{display:grid;grid-template-columns:5.5em 7em 1fr;gap:.2rem .8rem;margin:.4rem 0;font-size:.93rem}
.finding small{display:block}
details{margin:.4rem 0;border-bottom:1px solid var(--rule);padding-bottom:.4rem}summary{cursor:pointer;font-size:.93rem}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.83rem;background:var(--bg);border:1px solid var(--rule);
border-radius:6px;padding:.5rem .6rem;margin:.2rem 0;max-height:24em;overflow-y:auto}
@media(max-width:560px){.finding{grid-template-columns:1fr 1fr}.finding>:last-child{grid-column:1/-1}
dl{grid-template-columns:1fr}dt{margin-top:.3rem}main{padding:.8rem .8rem 2rem}}
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole page. ``title`` is plain text; ``body`` is HTML made by the functions of this module."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="generator" content="kvload {escape(__version__)}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{''.join(body)}</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A titled part of the page; empty where it has no content."""
    content = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def facts(pairs: Facts) -> str:
    """Names and what is said about them."""
    return "<dl>" + "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in pairs) + "</dl>" if pairs else ""


def paragraphs(texts: Iterable[str], style: str = "") -> str:
    """One paragraph a text."""
    return "".join(f'<p class="{style}">{escape(text)}</p>' for text in texts)


def bullets(texts: Sequence[str]) -> str:
    """A list of texts."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>" if texts else ""


def table(data: TableData) -> str:
    """A table that scrolls sideways on small screens, with details below its figures."""
    head = "".join(f"<th>{escape(column)}</th>" for column in data.columns)
    rows = []
    for row in data.rows:
        details = row.details or [""] * len(row.cells)
        cells = (
            f"<td>{escape(cell)}{f'<small>{escape(detail)}</small>' if detail else ''}</td>"
            for cell, detail in zip(row.cells, details, strict=True)
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = f"<caption>{escape(data.caption)}</caption>" if data.caption else ""
    body = f"{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def figure(title: str, svg: str, note: str = "") -> str:
    """A chart with its title and a note."""
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}{below}</figure>"


def charts(figures: Iterable[str]) -> str:
    """Charts beside or below each other, as the screen allows."""
    found = [figure for figure in figures if figure]
    return f'<div class="charts">{"".join(found)}</div>' if found else ""


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Names of series with their style classes."""
    items = (f'<li class="{style}"><i></i><span>{escape(name)}</span></li>' for name, style in entries)
    return f'<ul class="legend">{"".join(items)}</ul>'
