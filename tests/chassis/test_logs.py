"""chassis.logs: one format, and never a secret; run in a process of its own, as services run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chassis.logs import REDACTED, redact

ROOT = Path(__file__).resolve().parents[2]
JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
KEY = "fsk_usage_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
SECRETS = ["hunter22", JWT, KEY, "opaque-refresh", "red1s-pass", "raw-secret"]
SCRIPT = f"""
import logging, structlog, warnings
warnings.simplefilter("error")
from chassis import logs
from chassis.callers import PUBLIC
from chassis.calls import Call, enter
from chassis.contract import methods_of
from chassis.settings import ServiceSettings
from finity.auth.v1 import auth_pb2
logs.configure(ServiceSettings(), "probe")
log = structlog.get_logger()
methods = methods_of([auth_pb2.DESCRIPTOR.services_by_name["AuthService"]])
enter(Call(methods["/finity.auth.v1.AuthService/Login"], "r-1", PUBLIC, 0))
log.info("by name", password="hunter22", refresh_token="opaque-refresh", dsn="hunter22")
log.info("by shape", header="Bearer {JWT}", sent="{KEY}")
log.info("urls", a="postgresql://finity:hunter22@db/x", b="redis://:red1s-pass@127.0.0.1:1/0")
log.info("nested", request={{"password": "hunter22", "urls": ["redis://:red1s-pass@h"]}})
log.info("in the event: {JWT} {KEY}")
log.info("bytes", raw=b"postgresql://u:raw-secret@h/d", error=ValueError("u://u:raw-secret@h"))
log.info("kept", email="ada@example.com", count=3)
log.debug("below the level")
try:
    raise ValueError("cannot reach postgresql://finity:hunter22@db/x with {KEY}")
except ValueError:
    log.exception("failed")
    logging.getLogger("driver").exception("driver failed for %s", "{JWT}")
"""


def lines_of(log_format: str, **environment: str) -> list[str]:
    """Runs the script above and returns what it logged."""
    run = subprocess.run(  # noqa: S603 - our own interpreter and script
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "FINITY_LOG_FORMAT": log_format, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    return run.stderr.splitlines()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_secret_reaches_a_log(log_format: str) -> None:
    """Passwords, tokens, keys and DSN passwords are blanked wherever they stand in a line."""
    text = "\n".join(lines_of(log_format))
    assert REDACTED in text
    for secret in SECRETS:
        assert secret not in text, f"{secret} was logged"
    for kept in ("ada@example.com", "r-1", "probe", "postgresql://", "ValueError", "driver failed"):
        assert kept in text, f"{kept} is missing"
    assert "below the level" not in text


def test_production_lines_are_json() -> None:
    """In JSON format every line is one object with time, level, service and its call."""
    lines = [json.loads(line) for line in lines_of("json")]
    assert len(lines) == 9
    for line in lines:
        assert {"time", "level", "service", "event"} <= line.keys()
        assert line["service"] == "probe"
    for line in lines:
        assert line["request_id"] == "r-1"
        assert line["method"] == "finity.auth.v1.AuthService/Login"
        assert line["caller"] == "public"


def test_the_level_is_a_setting() -> None:
    """A level set to error leaves everything below it out."""
    lines = [json.loads(line) for line in lines_of("json", FINITY_LOG_LEVEL="error")]
    assert {line["level"] for line in lines} == {"error"}


def test_redaction_leaves_what_is_not_secret() -> None:
    """Words that only look like a URL or a token stay as they are."""
    event = {"event": "e", "url": "https://finity.ai/a:b@c", "note": "eyJ is a prefix", "n": 1}
    assert redact(None, "info", dict(event)) == event
