"""What the documents say that a machine can check: links, names, tables, sizes."""

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from suite.__main__ import main as finity
from tests.contracts.descriptors import SERVICES
from tests.deploy.variables import GATEWAY, ROOT, rooms, variables
from tests.house import LIMITS

README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *DECISIONS,
]
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
SECTIONS = ["Context", "Decision", "Consequences", "Alternatives"]
# Paths with a part that stands for others are not files.
PLACEHOLDER = re.compile(r"[<>…*$]")
# The variables that processes of the suite read for themselves.
SUITE = {"FINITY_STATE_DIR"}


def rows(text: str, header: str) -> Iterator[list[str]]:
    """Yields the cells of each row of the table whose header starts so."""
    lines = text[text.index(f"| {header} |") :].splitlines()[2:]
    for line in lines:
        if not line.startswith("|"):
            return
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        yield [cell.strip() for cell in cells]


def code(text: str) -> Iterator[str]:
    """Yields what is set in code: spans, and the lines of blocks."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link is a file or folder of the repository."""
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not re.match(r"https?://|#", link):
            assert (document.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_files_in_code_exist(document: Path) -> None:
    """A path in code that starts with a folder of ours is there."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {".venv", ".finity"}
    for text in code(document.read_text()):
        for word in text.split():
            path = word.strip("`'\",;:()").rstrip(".")
            if path.partition("/")[0] in folders and "/" in path and not PLACEHOLDER.search(path):
                assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_commands_in_code_exist(document: Path) -> None:
    """Targets of make, commands of finity and modules of `python -m` are there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in code(document.read_text()):
        for target in re.findall(r"(?:^|[^\w-])make ((?:[a-z-]+\|?)+)(?:\s|$)", text):
            assert set(target.split("|")) <= targets, text
        for name in re.findall(r"(?:^|/|\s)finity ([a-z]+)", text):
            assert name in finity.commands, text
        for module in re.findall(r"python -m ([a-z_.]+)", text):
            assert importlib.util.find_spec(module), text


def test_sizes() -> None:
    """ARCHITECTURE is a page; the limits it names are those that are checked."""
    assert len(ARCHITECTURE.splitlines()) <= LIMITS["ARCHITECTURE.md"]
    for cells in rows(ARCHITECTURE, "file"):
        named, limit = cells[0].strip("`"), cells[-1]
        if limit:
            assert LIMITS[f"services/*/{named}"] == int(limit), named


def test_services_of_the_readme() -> None:
    """Every room with its port and all its tables, and no others."""
    named = {cells[0]: cells for cells in rows(README, "service")}
    assert set(named) == set(rooms())
    for room, (_, port, tables) in named.items():
        assert port == variables()[f"FINITY_{room.upper()}_PORT"].default
        files = sorted((ROOT / "services" / room / "migrations").glob("*.sql"))
        sql = "\n".join(path.read_text() for path in files)
        made, dropped = (
            set(re.findall(rf"^{verb} TABLE (\w+)", sql, re.MULTILINE))
            for verb in ("CREATE", "DROP")
        )
        assert set(split(tables)) == made - dropped


def test_contracts_of_the_readme() -> None:
    """Every service of every contract with all its RPCs in their order, linked to its file."""
    named = {cells[0]: split(cells[1]) for cells in rows(README, "contract")}
    assert named == {
        f"[{service.name}](protos/{service.file.name})": [m.name for m in service.methods]
        for room in rooms()
        for service in SERVICES[room]
    }


def test_settings_of_the_readme() -> None:
    """The table is exactly the fields of the settings classes, defaults and readers included."""
    expected = variables()
    everybody, services = {*rooms(), GATEWAY}, set(rooms())
    seen = set()
    for name, default, readers, meaning in rows(README, "variable"):
        variable = name.strip("`")
        assert meaning
        seen.add(variable)
        if variable in SUITE:
            assert readers == "suite"
            continue
        known = expected[variable]
        assert default.strip("`") == known.default, variable
        named = {"all": everybody, "services": services}.get(readers, set(split(readers)))
        assert named == known.readers, variable
    assert seen == set(expected) | SUITE


def test_settings_of_the_suite_exist() -> None:
    """What only the suite reads is in its code."""
    source = "\n".join(path.read_text() for path in (ROOT / "suite").rglob("*.py"))
    for name in SUITE:
        assert f'"{name}"' in source


def test_dependencies_of_the_readme() -> None:
    """Every dependency has a row with its reason, and every row is a dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"run": project["dependencies"], **project["optional-dependencies"]}
    expected = [
        (re.split(r"[\[=<>~!; ]", requirement)[0], kind)
        for kind, requirements in groups.items()
        for requirement in requirements
    ]
    named = [(package, kind) for package, kind, reason in rows(README, "package") if reason]
    assert sorted(named) == sorted(expected)


def test_decisions_are_numbered_and_whole() -> None:
    """From 1 on without a gap; the title has the number, the four sections are there in order."""
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    for number, path in enumerate(DECISIONS, 1):
        text = path.read_text()
        assert text.startswith(f"# {number}. "), path.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS, path.name


def split(cell: str) -> list[str]:
    """Returns the names of a cell that lists them."""
    return [name.strip() for name in cell.split(",")]
