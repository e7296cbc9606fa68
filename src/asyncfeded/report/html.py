"""The few pieces of HTML that a report is made of. Every text is escaped where it enters, unless it is HTML already."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


class Html(str):
    """Text that is HTML already, since `tag` made it; any other `str` is escaped where it enters a tag."""

    __slots__ = ()


def tag(name: str, *inner: str, **attributes: str | int) -> Html:
    """An element; `inner` is escaped unless it is Html. In names of attributes `class_` is class and `_` is a dash."""
    words = [f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()]
    return Html(f"<{name}{''.join(words)}>{join(inner)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Parts one after another; escaped unless they are Html."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def data(key: str, value: Any) -> Html:  # noqa: ANN401, whatever JSON can hold
    """Data for the page's script, which finds it by `key`. No text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{escape(key)}">{text}</script>')


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> Html:
    """A table that scrolls sideways where the page is narrow.

    Args:
        head: names of the columns.
        rows: cells.
        words: how many columns at the left hold words; the others hold numbers.
    """

    def cells(kind: str, row: Sequence[str]) -> Html:
        return tag("tr", *(tag(kind, cell) for cell in row))

    body = tag("tbody", *(cells("td", row) for row in rows))
    inner = tag("table", tag("thead", cells("th", head)), body, class_=f"words{words}")
    return tag("div", inner, class_="scroll", tabindex=0)


def facts(rows: Iterable[tuple[str, str]]) -> Html:
    """Names and values, without those that are empty."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows if value), class_="facts")


def folded(summary: str, *inner: str) -> Html:
    """What is shown when the reader asks for it."""
    return tag("details", tag("summary", summary), *inner)
