"""Bar charts as SVG, written by hand: a panel per quantity, a bar per contender, a whisker from least to most."""

import math
from html import escape

from tests.lab.bench.result import Quantity, Result

WIDTH = 860  # px, as all that follows
NAME_WIDTH, VALUE_WIDTH = 240, 110
BAR, GAP, PANEL_GAP, MARGIN = 18, 6, 22, 20
TITLE_HEIGHT, HEADING_HEIGHT = 34, 24
SUBJECT_COLOUR, OTHER_COLOUR, WHISKER_COLOUR = "#2563eb", "#94a3b8", "#1e293b"


def chart(result: Result) -> str:
    """The whole document."""
    body: list[str] = []
    y = MARGIN + TITLE_HEIGHT
    for quantity in result.samples:
        y = _panel(body, result, quantity, y) + PANEL_GAP
    height = y - PANEL_GAP + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            _text(MARGIN, MARGIN + 16, result.title, size=18, weight="bold"),
            *body,
            "</svg>\n",
        ]
    )


def _panel(body: list[str], result: Result, quantity: Quantity, y: int) -> int:
    """Draw one quantity from `y` down; where the next begins."""
    better = "more is better" if quantity.more_is_better else "less is better"
    body.append(_text(MARGIN, y + 15, f"{quantity.name}, {quantity.unit} ({better})", weight="bold"))
    y += HEADING_HEIGHT
    contenders = result.contenders(quantity)
    most = max((max(result.values(quantity, name)) for name in contenders), default=0.0)
    room = WIDTH - 2 * MARGIN - NAME_WIDTH - VALUE_WIDTH
    scale = room / most if most > 0 else 0.0
    left = MARGIN + NAME_WIDTH
    for name in contenders:
        values = result.values(quantity, name)
        middle = result.median(quantity, name) or 0.0
        colour = SUBJECT_COLOUR if name == result.subject else OTHER_COLOUR
        low, high = (left + max(0.0, value) * scale for value in (min(values), max(values)))
        body.append(_text(left - 8, y + BAR - 5, name, anchor="end"))
        width = max(0.0, middle) * scale
        body.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')
        centre = y + BAR / 2
        body.append(
            f'<path d="M{low:.1f} {centre}H{high:.1f}M{low:.1f} {y + 5}V{y + BAR - 5}M{high:.1f} {y + 5}V{y + BAR - 5}"'
            f' stroke="{WHISKER_COLOUR}" fill="none"/>'
        )
        body.append(_text(max(left + width, high) + 6, y + BAR - 5, number(middle)))
        y += BAR + GAP
    return y


def _text(x: float, y: float, text: str, *, size: int = 13, weight: str = "normal", anchor: str = "start") -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def number(value: float) -> str:
    """Three digits that matter, thousands set apart."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"
