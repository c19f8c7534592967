"""Paragraphs that docstrings share."""

import inspect

import pytest

from xdan.core.shared_docs import shares


def test_paragraph_takes_the_indentation_of_its_marker_and_the_function_stays():
    def draw(seed: int) -> int:
        """Draw.

        Parameters
        ----------
        {seed}

            More of it.
        """
        return seed

    filled = shares({"seed": "seed : int\n    Keys draws.\n\n    - {this} stays."})(draw)
    assert filled is draw
    assert inspect.getdoc(draw) == (
        "Draw.\n\nParameters\n----------\nseed : int\n    Keys draws.\n\n    - {this} stays.\n\n    More of it."
    )
    assert all(line == line.rstrip() for line in draw.__doc__.splitlines()[:-1])


def test_name_without_a_paragraph_is_refused():
    def draw():
        """{sed}"""

    with pytest.raises(KeyError, match="sed"):
        shares({"seed": "x"})(draw)


def test_function_without_a_docstring_stays():
    def draw():
        return 1

    assert shares({})(draw) is draw
    assert draw.__doc__ is None
