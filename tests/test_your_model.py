"""What docs/your-model.md says of methods."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "your-model.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.M))


def test_the_page_names_the_methods_that_work():
    from xdan.core.methods.base import METHODS

    text = SECTIONS["A NumPy model"].split("**What works.**")[1].split("**Training.**")[0]
    works, refused = text.split("scores, gains")
    for name in METHODS:
        if "particle" not in name and name not in ("ienkf-n", "ienks-n"):  # named together with others
            assert f"`{name}`" in (refused if METHODS[name].differentiates_model else works), name
