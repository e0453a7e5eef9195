"""The steps of the story; each says what happens, does it and shows what came of it."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.json import JSON
from rich.markup import escape
from rich.table import Table

from chassis.ids import uuid7
from suite.console import console, show
from suite.demo import chart, people
from suite.demo.client import Gateway, Refused
from suite.errors import SuiteError
from suite.importing import plan, screen
from suite.importing.target import Target
from suite.state import ROOT

TRACE = Path("examples", "AzureLLMInferenceTrace_code.csv")
GRANT = 12_000
"""Credits each person gets; the trace costs each about 10,900."""
SLOT_MINUTES = (5, 60)
TOO_MUCH = 100_000


class Story:
    """Told once; `finity demo` runs it."""

    def __init__(self, gateway: Gateway, usage: Target, directory: Path) -> None:
        """`directory` is the suite's state folder."""
        self._gateway = gateway
        self._usage = usage
        self._directory = directory
        self._people = people.cast()
        self._chapter = 0

    def tell(self) -> None:
        """Tells it all; SuiteError if the suite does not play along."""
        try:
            self._register()
            self._open_accounts()
            self._grant()
            self._import()
            self._balances()
            self._busiest()
            self._refused()
        except Refused as refused:
            raise SuiteError(f"The gateway refused a step of the story: {refused.body}") from None

    def _register(self) -> None:
        self._say("Three people register and log in.", "POST /v1/users, POST /v1/sessions")
        rows = _grid()
        for person in self._people:
            people.register(self._gateway, person)
            role = people.login(self._gateway, person)["user"]["role"]
            shown = role.removeprefix("ROLE_").lower()
            rows.add_row(person.email, f"[dim]{person.user_id}[/]", shown)
        show(rows)

    def _open_accounts(self) -> None:
        self._say(
            "Each registration is an event in an outbox that opens a credit account.",
            "GET /v1/users/me/balance",
        )
        started = time.monotonic()
        opened_with = [people.wait_for_account(self._gateway, person) for person in self._people]
        seconds = time.monotonic() - started
        each = ", ".join(f"{number:,}" for number in sorted(set(opened_with)))
        console.print(f"   three accounts, open after {seconds:.2f} s, with {each} credits each")

    def _grant(self) -> None:
        self._say(
            "An internal service grants credits. A repeated call grants nothing more.",
            "POST /v1/users/{user_id}/credits:grant",
        )
        rows = _grid(right=(1, 2))
        body = {"amount": str(GRANT), "source": "demo", "source_ref": "finity-demo"}
        for person in self._people:
            path = f"/v1/users/{person.user_id}/credits:grant"
            for _ in range(2):
                answer = self._gateway.post(path, body, self._usage.service_key)
            available = int(answer["balance"]["available"])
            rows.add_row(person.name, f"+{GRANT:,}", f"{available:,} available")
        show(rows)

    def _import(self) -> None:
        self._say(
            "An hour of real calls to an LLM service becomes their usage, in turns.",
            "finity usage import: RecordUsageBatch straight to the usage service",
        )
        trace = ROOT / TRACE
        if not trace.is_file():
            raise SuiteError(f"{TRACE} is missing from this checkout.")
        planned = plan.make(
            trace,
            directory=self._directory,
            users=tuple(person.user_id for person in self._people),
            shift_to=datetime.now(UTC).replace(microsecond=0),
        )
        screen.run(planned, str(TRACE), self._usage)

    def _balances(self) -> None:
        self._say(
            "Every call has spent its credits: granted - used = available.",
            "GET /v1/users/me/balance",
        )
        rows = _grid(right=(1, 2, 3))
        for person in self._people:
            left = people.balance(self._gateway, person)
            rows.add_row(
                person.name,
                f"{left['granted']:,} granted",
                f"- {left['used']:,} used",
                f"= [green]{left['available']:,}[/] available",
            )
        show(rows)

    def _busiest(self) -> None:
        self._say(
            "Each reads back what was recorded: when it was busiest (UTC).",
            "GET /v1/users/me/usage, in pages of 1,000",
        )
        times = [
            moment
            for person in self._people
            for moment in people.usage_times(self._gateway, person)
        ]
        for minutes in SLOT_MINUTES:
            console.print()
            counts = chart.slots(times, minutes)
            show(chart.bars(counts))
            (slot, most), *_ = counts.most_common(1)
            console.print(
                f"   [dim]busiest {minutes} minutes of {len(times):,} calls:[/]"
                f" {slot:%H:%M}, {most:,} calls"
            )

    def _refused(self) -> None:
        person = self._people[0]
        self._say(
            f"{person.name} asks for more than is left: refused, and nothing is spent.",
            "POST /v1/usage",
        )
        event = {
            "event_id": str(uuid7(datetime.now(UTC))),
            "user_id": person.user_id,
            "tool_name": "llm-code",
            "credits": str(TOO_MUCH),
        }
        before = people.balance(self._gateway, person)
        try:
            self._gateway.post("/v1/usage", event, self._usage.service_key)
        except Refused as refused:
            console.print(f"   [red]HTTP {refused.http}[/]")
            answer = _grid()
            answer.add_row(JSON.from_data(refused.body))
            show(answer)
        else:
            raise SuiteError(f"{TOO_MUCH:,} credits were spent that nobody had.")
        if people.balance(self._gateway, person) != before:
            raise SuiteError("A refused call has changed the balance.")

    def _say(self, sentence: str, calls: str) -> None:
        self._chapter += 1
        console.print(f"\n[bold]{self._chapter}  {escape(sentence)}[/]")
        console.print(f"   [dim]{escape(calls)}[/]")


def _grid(right: Sequence[int] = ()) -> Table:
    """Returns a table without lines; `right` are the columns that hold numbers."""
    rows = Table(box=None, show_header=False, padding=(0, 0, 0, 3))
    for column in range(max(right, default=-1) + 1):
        rows.add_column(justify="right" if column in right else "left", no_wrap=True)
    return rows
