"""
House rules that no linter knows: `python -m tests.house`, part of `make check`.

Sizes of files, words that must not be in the tree, and SQL that lists its columns.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Glob of files → most lines. Past it, split by resource.
LIMITS = {
    "services/*/__main__.py": 100,
    "services/*/rpc.py": 300,
    "services/*/service.py": 500,
    "services/*/store.py": 400,
    "services/*/rpc/*.py": 300,
    "services/*/service/*.py": 500,
    "services/*/store/*.py": 400,
    "services/*/domain/*.py": 400,
    "chassis/*.py": 200,
    "gateway/*.py": 300,
    "suite/**/*.py": 200,
    "benchmarks/*.py": 300,
    "tests/**/*.py": 500,
    "ARCHITECTURE.md": 150,
}
VAGUE = {"utils", "util", "common", "helpers", "helper", "models", "misc"}
REGISTRY = re.compile(r"(pypi|pythonhosted|npmjs|debian|yarnpkg)[.](org|com|net)")
SELECT_STAR = re.compile(r"\bSELECT\s+(\w+\.)?\*(?!\s+FROM\s+unnest)", re.IGNORECASE)
BARE_TODO = re.compile(r"\b(TODO|FIXME|XXX)\b(?!\(#(\d+|n)\))")
MAX_PATH_PARTS = 2


def main() -> None:
    problems = [*sizes(), *names(), *words()]
    if problems:
        sys.exit("\n".join(problems))
    sys.stdout.write("house rules hold\n")


def tracked() -> list[Path]:
    """Returns every file git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def sizes() -> Iterator[str]:
    """Yields files longer than their kind may be."""
    for pattern, limit in LIMITS.items():
        for path in sorted(ROOT.glob(pattern)):
            lines = len(path.read_text().splitlines())
            if lines > limit:
                yield f"{path.relative_to(ROOT)} has {lines} lines; {limit} is the limit."


def names() -> Iterator[str]:
    """Yields modules whose name says nothing."""
    for path in tracked():
        if path.suffix == ".py" and path.stem in VAGUE:
            yield f"{path.relative_to(ROOT)}: name it for what it does."


def words() -> Iterator[str]:
    """Yields lines with a registry's host, a path of this machine, SELECT * or a bare TODO."""
    here = [f"{place}/" for place in (ROOT, Path.home()) if len(place.parts) >= MAX_PATH_PARTS]
    for path in tracked():
        if path.suffix in {".binpb", ".png", ".csv"} or "gen" in path.relative_to(ROOT).parts[:1]:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            place = f"{path.relative_to(ROOT)}:{number}"
            if REGISTRY.search(line):
                yield f"{place} names a registry's host."
            if "<!-- Place" in line and path.name != "house.py":
                yield f"{place} is a place somebody meant to fill."
            if any(part in line for part in here):
                yield f"{place} names a path of this machine."
            if path.suffix in {".py", ".sql"} and path.name != "house.py":
                yield from code_words(place, line)


def code_words(place: str, line: str) -> Iterator[str]:
    """Yields what code must not say."""
    if SELECT_STAR.search(line):
        yield f"{place}: list the columns."
    if BARE_TODO.search(line):
        yield f"{place}: a TODO needs an issue, TODO(#n)."


if __name__ == "__main__":
    main()
