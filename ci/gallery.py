"""Run the blocks of docs/gallery.md in order, which write its pictures, and check that the page shows these pictures.

python ci/gallery.py [--page docs/gallery.md] [--most-kib 1500]
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from page_blocks import blocks_of


def run(page: Path) -> None:
    """Run the blocks of a page in one namespace, in the folder of the page."""
    names: dict[str, Any] = {}
    os.chdir(page.parent)
    Path("gallery").mkdir(exist_ok=True)
    for block in blocks_of(page):
        begin = time.perf_counter()
        names = block.run(names)
        print(f"line {block.line}: {time.perf_counter() - begin:.1f} s", flush=True)


def wrong(page: Path, most_kib: int) -> list[str]:
    """Faults: pictures that the page lacks, missing pictures, or pictures that are too large."""
    shown = set(re.findall(r"\]\(gallery/([\w-]+\.png)\)", page.read_text()))
    there = {path.name: path.stat().st_size for path in (page.parent / "gallery").glob("*")}
    faults = [f"{name} is shown and not there" for name in sorted(shown - set(there))]
    faults += [f"{name} is there and not shown" for name in sorted(set(there) - shown)]
    if (size := sum(there.values()) / 1024) > most_kib:
        faults.append(f"the pictures have {size:.0f} KiB: expected at most {most_kib}")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "gallery.md")
    parser.add_argument("--most-kib", type=int, default=1500)
    options = parser.parse_args()
    page = options.page.resolve()
    warnings.simplefilter("ignore", UserWarning)  # of short runs
    run(page)
    if faults := wrong(page, options.most_kib):
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
