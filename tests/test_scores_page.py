"""docs/scores.md has every score."""

from pathlib import Path

import xdan

PAGE = (Path(__file__).parents[1] / "docs" / "scores.md").read_text()


def test_every_score_is_on_the_page(twin, ensemble, run):
    scored = [xdan.score(twin, ensemble, also=["energy"]), xdan.score(twin, run)]
    tables = [*scored, xdan.reliability(twin, ensemble, threshold=2.0)[["brier_score", "brier_score_fair"]]]
    names = {str(name) for table in tables for name in table.data_vars} - {"diverged"}
    assert not {name for name in names if f"`{name}`" not in PAGE}
