"""The blocks of a page of the documentation, for its tests and for ci/docs_blocks.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
_FENCE = re.compile(
    r"^((?:<!-- not run: (?P<reason>.+?) -->\n)?)```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
# A block that imports the package stands by itself, as a user copies it; the others go on from the block before.
_BEGINS = re.compile(r"^import (.*, )?xdan$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Code between two fences.

    Parameters
    ----------
    page : Path
    line : int
        Of the first line of the code, from 1 on.
    section : str
        Title of the section, of the second level.
    language, code : str
    reason : str
        Why the block is not run: of the comment `<!-- not run: reason -->` above it; empty where it is run.
    """

    page: Path
    line: int
    section: str
    language: str
    code: str
    reason: str

    @property
    def begins(self) -> bool:
        """Whether the block uses no names of the blocks before it."""
        return bool(_BEGINS.search(self.code))

    def run(self, names: dict[str, Any]) -> dict[str, Any]:
        """Run the code in a namespace, a new one where the block begins one, and return it.

        A traceback shows the page's lines.
        """
        names = names if names and not self.begins else {"__name__": "__main__"}
        exec(compile("\n" * (self.line - 1) + self.code, str(self.page), "exec"), names)
        return names


def blocks_of(page: Path | str, language: str = "python", section: str | None = None) -> list[Block]:
    """The blocks of a page in their order, those that are not to be run too.

    Parameters
    ----------
    page : Path or str
        A path, or the name of a page in docs/ without its suffix.
    language : str
    section : str, optional
        Only those below this heading of the second level.
    """
    path = DOCS / f"{page}.md" if isinstance(page, str) else page
    return [
        block
        for block in _all_blocks(path)
        if block.language == language and (section is None or block.section == section)
    ]


def _all_blocks(path: Path) -> Iterator[Block]:
    text = path.read_text()
    for fence in _FENCE.finditer(text):
        titles = re.findall(r"^## (.+)$", text[: fence.start()], re.M)
        line = text.count("\n", 0, fence.start("code")) + 1
        reason = fence["reason"] or ""
        yield Block(path, line, titles[-1] if titles else "", fence["language"], fence["code"], reason)
