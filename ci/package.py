"""Builds the sdist and the wheel, checks what they hold, and measures what the wheel brings without extras.

python ci/package.py FOLDER

FOLDER receives `dist/` and `environment/`. The sdist is built first, and the wheel from the sdist. The environment gets
the wheel with the versions of ci/constraints.txt. Needs `build` and `twine`, which the extra `dev` brings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_MEBIBYTES = 0.6 * 584  # without torch; 584 before pictures became an extra
MOST_SECONDS = 1.5  # of the processor, for `import xdan`; median
IMPORTS = 5

# In the environment: sizes of what is installed, without torch and all that torch alone brings.
_SIZES = r"""
import json, re, sys
from importlib import metadata
from pathlib import Path

def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()

installed = {normal(one.name): one for one in metadata.distributions()}

def closure(name):
    seen, waiting = set(), [name]
    while waiting:
        one = waiting.pop()
        if one in seen or one not in installed:
            continue
        seen.add(one)
        lines = [line for line in installed[one].requires or [] if "extra ==" not in line]
        waiting += [normal(re.match(r"[\w.-]+", line).group()) for line in lines]
    return seen

skipped = closure("torch") | {"pip", "setuptools", "wheel"}
sizes = {}
for name, one in installed.items():
    if name not in skipped:
        files = (Path(one.locate_file(file)) for file in one.files or [])
        sizes[name] = sum(file.stat().st_size for file in files if file.is_file()) / 2**20
print(json.dumps(sizes))
"""
# Wall clock and processor: the second does not depend on what else the machine does.
_SECONDS = """
import time
begin = time.perf_counter(), time.process_time()
import xdan
print(time.perf_counter() - begin[0], time.process_time() - begin[1])
"""


def faults_of_wheel(names: list[str]) -> list[str]:
    """What is wrong with the files of a wheel.

    Parameters
    ----------
    names : list of str
        Paths in the archive.

    Returns
    -------
    list of str
        Sentences; none where all is well.
    """
    tracked = [path for path in _tracked() if path.startswith("xdan/")]
    lacking = sorted(set(tracked) - set(names))
    foreign = sorted({name.split("/")[0] for name in names if not name.startswith(("xdan/", "xdan-"))})
    needed = ("xdan/py.typed", "xdan/__init__.pyi", "xdan/accessor.pyi", "xdan/trained/lorenz96.zarr/zarr.json")
    lacking += [name for name in needed if name not in names and name not in lacking]
    return [*(f"the wheel lacks {name}" for name in lacking), *(f"the wheel holds {name}/" for name in foreign)]


def faults_of_sdist(names: list[str]) -> list[str]:
    """What an sdist lacks of the files that git knows; the settings of the place where it is developed are left out."""
    inside = {name.partition("/")[2] for name in names}
    left_out = (".ci/", ".github/")
    return [f"the sdist lacks {path}" for path in _tracked() if path not in inside and not path.startswith(left_out)]


def _tracked() -> list[str]:
    """Files of the package and beside it, by git."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if (ROOT / line).exists()]


def build(folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it, and check both with twine.

    Returns
    -------
    sdist, wheel : path
    """
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, stdout=subprocess.DEVNULL)
    sdist, wheel = max(folder.glob("*.tar.gz")), max(folder.glob("*.whl"))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", sdist, wheel], check=True)
    return sdist, wheel


def measure(python: Path) -> tuple[dict[str, float], float, float]:
    """Sizes of the installed packages in MiB, and median seconds of `import xdan`: wall clock, and processor."""
    with tempfile.TemporaryDirectory() as elsewhere:  # not in the tree, which would be imported

        def printed(code: str) -> str:
            call = [python, "-I", "-c", code]
            return subprocess.run(call, check=True, capture_output=True, text=True, cwd=elsewhere).stdout

        sizes = json.loads(printed(_SIZES))
        printed(_SECONDS)  # the first one compiles
        times = [tuple(map(float, printed(_SECONDS).split())) for _ in range(IMPORTS)]
        wall, seconds = (statistics.median(some) for some in zip(*times, strict=True))
        return sizes, wall, seconds


def main() -> None:
    """Build, check, install, run and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    environment = folder / "environment"
    if environment.exists() or (folder / "dist").exists():
        raise SystemExit(f"{folder} holds an environment or packages: expected another folder, or an empty one")
    sdist, wheel = build(folder / "dist")
    with zipfile.ZipFile(wheel) as held, tarfile.open(sdist) as source:
        faults = faults_of_wheel(held.namelist()) + faults_of_sdist(source.getnames())
    for path in (sdist, wheel):
        print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")

    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    constraints = ROOT / "ci" / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, wheel], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    subprocess.run([python, "-I", ROOT / "ci" / "core_verbs.py"], check=True, cwd=folder)
    sizes, wall, seconds = measure(python)
    whole = sum(sizes.values())
    largest = ", ".join(f"{name} {size:.0f}" for name, size in sorted(sizes.items(), key=lambda one: -one[1])[:6])
    print(
        f"site-packages without torch and what torch brings: {whole:.0f} MiB, at most {MOST_MEBIBYTES:.0f} ({largest})"
    )
    print(f"import xdan, median of {IMPORTS}: {wall:.2f} s; {seconds:.2f} s of the processor, at most {MOST_SECONDS}")
    if whole > MOST_MEBIBYTES:
        faults.append(f"site-packages hold {whole:.0f} MiB: expected at most {MOST_MEBIBYTES:.0f}")
    if seconds > MOST_SECONDS:
        faults.append(f"import xdan takes {seconds:.2f} s of the processor: expected at most {MOST_SECONDS} s")
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
