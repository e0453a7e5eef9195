"""JSON over HTTP to the gateway, with the standard library."""

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode

from suite.errors import SuiteError

Json = dict[str, Any]
_SECONDS = 20.0
# A proxy of the environment is never meant for a port of this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(Exception):  # noqa: N818 - as chassis.errors.Refusal: an answer, not an error
    """The gateway or a service refused the call."""

    def __init__(self, http: int, body: Json) -> None:
        super().__init__(str(body.get("message", http)))
        self.http = http
        self.body = body

    @property
    def reason(self) -> str:
        """ErrorInfo.reason; "" if the body has none."""
        details = self.body.get("details", [])
        return next((str(detail["reason"]) for detail in details if "reason" in detail), "")


class Gateway:
    """The suite's public side; `token` is an access token or a service key."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def post(self, path: str, body: Json, token: str = "") -> Json:
        """Returns the answer; Refused, or SuiteError if there is none."""
        return self._call("POST", path, json.dumps(body).encode(), token)

    def get(self, path: str, token: str, **query: str | int) -> Json:
        """The same for a method that only reads."""
        return self._call("GET", f"{path}?{urlencode(query)}" if query else path, None, token)

    def _call(self, method: str, path: str, body: bytes | None, token: str) -> Json:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            request = urllib.request.Request(  # noqa: S310 - checked by `finity demo`
                self.url + path, body, headers, method=method
            )
            with _OPENER.open(request, timeout=_SECONDS) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, _body(error)) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise SuiteError(
                f"The gateway at {self.url} gave no answer ({reason}): is `make run` still running?"
            ) from error


def _body(error: urllib.error.HTTPError) -> Json:
    try:
        return dict(json.load(error))
    except ValueError:
        return {"message": f"HTTP {error.code} without a JSON body"}
