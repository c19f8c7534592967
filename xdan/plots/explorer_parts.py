"""Parts of the explorer's pages: the address of a page, inputs with messages beside them, and the download."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, Protocol
from urllib.parse import parse_qs, urlencode

from ..core.checks import shown
from .libraries import panel

WIDGETS = 230  # pixels of the column of widgets
PICTURES = 1090  # pixels of the pictures beside the widgets, on a screen of 1366
_LOOK = "color:#A40000; font-size:12px; margin:0"


class Page(Protocol):
    """The content of a tab of the explorer. It is checked once, and made anew for each browser."""

    title: str

    def view(self, address: Address) -> Any:
        """Widgets and pictures of one session."""
        ...


class Address:
    """The query of a page's address, such as `?method=EnKF-N&first=20`: the first and the current choices of a session.

    Outside a server there is no address: every value is then the default, and nothing is written.

    Attributes
    ----------
    refused : list of str
        Messages about choices in the address that do not exist.
    """

    def __init__(self) -> None:
        state = panel().state
        served = state.curdoc is not None and state.curdoc.session_context is not None
        self._location = state.location if served else None
        search = self._location.search if self._location is not None else ""
        self._query: dict[str, list[str]] = parse_qs(search.lstrip("?"), keep_blank_values=True)
        self.refused: list[str] = []

    def one(self, key: str, options: Sequence[Any], default: Any) -> Any:
        """The option whose text is in the address; the default if the address names none."""
        return self.some(key, options, [default])[0]

    def some(self, key: str, options: Sequence[Any], default: list[Any]) -> list[Any]:
        """The options whose texts are in the address."""
        if key not in self._query:
            return default
        asked = self._query[key]
        by_name = {str(option): option for option in options}
        if not set(asked) <= set(by_name):
            self._refuse(key, ", ".join(asked), f"one of {list(by_name)}")
            return default
        return [by_name[name] for name in asked]

    def number(self, key: str, least: int, most: int, default: int) -> int:
        """The whole number in the address."""
        if key not in self._query:
            return default
        text = self._query[key][-1]
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if least <= value <= most:
            return value
        self._refuse(key, text, f"a whole number from {least} to {most}")
        return default

    def _refuse(self, key: str, text: str, expected: str) -> None:
        self.refused.append(f"the address asks for {key}={shown(text)}: expected {expected}")

    def write(self, **values: Any) -> None:
        """Write the current choices into the address. A list stands for several values of one key."""
        lists = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
        self._query |= {key: [str(one) for one in several] for key, several in lists.items()}
        if self._location is not None:
            search = "?" + urlencode(self._query, doseq=True)
            if self._location.search != search:
                self._location.search = search

    def message(self) -> Any:
        """The messages above the page; nothing if there are none."""
        pn = panel()

        text = "; ".join(self.refused)
        return pn.pane.Alert(
            escape(f"{text[:1].upper()}{text[1:]}. The usual view is shown."),
            alert_type="warning",
            margin=(0, 5),
            styles={"padding": "6px"},
        )


class WholeNumber:
    """An input for a whole number. For a number out of range, a message appears below, and the picture does not change.

    Parameters
    ----------
    label : str
    value, least, most : int
    step : int
        Step of the arrows beside the number.

    Attributes
    ----------
    accepted : param.rx of int
        The last number that was in range.
    """

    def __init__(self, label: str, value: int, least: int, most: int, step: int = 1) -> None:
        pn = panel()
        from param import rx

        self.accepted = rx(value)
        self._least, self._most = least, most
        # The widget has no bounds: with bounds, the browser would change a number without a message.
        self.widget = pn.widgets.IntInput(
            label=label, value=value, step=step, width=WIDGETS, disabled=least == most, margin=(2, 5)
        )
        self._message = pn.pane.HTML("", visible=False, width=WIDGETS, margin=(0, 5))
        self.widget.param.watch(self._changed, "value")

    def _changed(self, event: Any) -> None:
        value = event.new
        inside = value is not None and self._least <= value <= self._most
        if not inside:
            text = f"{'nothing' if value is None else value}: expected {self._least} to {self._most}"
            self._message.object = f'<p role="alert" style="{_LOOK}">{text}. Still shown: {self.accepted.rx.value}.</p>'
        self._message.visible = not inside
        if inside:
            self.accepted.rx.value = value

    @property
    def value(self) -> int:
        """The last number that was in range."""
        number: int = self.accepted.rx.value
        return number

    @property
    def parts(self) -> list[Any]:
        """The input, and the place of its message."""
        return [self.widget, self._message]


def select(label: str, options: Sequence[Any], value: Any, **options_of_widget: Any) -> Any:
    """A list to choose from. It is hidden if there is only one option."""
    pn = panel()

    several = len(options) > 1
    return pn.widgets.Select(
        label=label, options=list(options), value=value, width=WIDGETS, margin=(2, 5), visible=several,
        **options_of_widget,
    )  # fmt: skip


def drawn(draw: Callable[..., list[list[Any]]], seen: Sequence[Any]) -> Any:
    """Rows of pictures that are drawn again when a value changes, with a sign while they are drawn.

    Each picture is one panel: a picture of several panels has no size if it lies deep in a page.

    Parameters
    ----------
    draw : callable
        A function of the values that returns rows of pictures.
    seen : sequence of widget, parameter or reactive value
    """
    pn = panel()
    from param.reactive import resolve_value

    def rows(pictures: list[list[Any]]) -> list[Any]:
        return [
            pn.Row(*(pn.pane.HoloViews(one, linked_axes=False, margin=0) for one in row), margin=0) for row in pictures
        ]

    column = pn.Column(*rows(draw(*map(resolve_value, seen))), margin=0)

    def again(*values: Any) -> None:
        with column.param.update(loading=True):
            column.objects = rows(draw(*values))

    pn.bind(again, *seen, watch=True)
    return column


def page(widgets: list[Any], draw: Any, table: Callable[[], io.StringIO], filename: str) -> Any:
    """Widgets beside pictures, with a sign while they are drawn.

    Parameters
    ----------
    widgets : list
    draw : callable or viewable
        The result of `pn.bind` or of `drawn`.
    table : callable
        Returns the data that are shown as CSV.
    filename : str
        Name of the CSV file.
    """
    pn = panel()

    download = pn.widgets.FileDownload(
        callback=table, filename=filename, label="download what is shown", width=WIDGETS, margin=(8, 5)
    )
    pictures = pn.panel(draw, loading_indicator=True) if callable(draw) else draw
    return pn.Row(pn.Column(*widgets, download, width=WIDGETS + 10), pictures)


def csv(frame: Any) -> io.StringIO:
    """A table as CSV."""
    return io.StringIO(frame.to_csv())
