"""The table `finity run` ends its start with."""

from rich import box
from rich.markup import escape
from rich.table import Table

from suite.credentials import DEVELOPER
from suite.ports import LOOPBACK
from suite.rooms import ROOMS
from suite.stack import Stack


def table(stack: Stack) -> Table:
    """Addresses, credentials and three commands; no line is so long that a terminal breaks it."""
    rows = Table(box=box.HORIZONTALS, show_header=False, title="Finity runs", title_justify="left")
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("gateway", stack.gateway_url)
    for room in ROOMS:
        rows.add_row(f"{room.name} (gRPC)", stack.addresses.of(room))
    for room in ROOMS:
        rows.add_row(f"{room.name} metrics", stack.addresses.metrics_of(room) or "off")
    rows.add_row("mail", _mail(stack))
    rows.add_row("admin" if stack.administers else "user", escape(stack.credentials.admin_email))
    rows.add_row("  password", escape(stack.credentials.admin_password))
    rows.add_row("service key", escape(stack.credentials.service_keys[DEVELOPER]))
    rows.add_section()
    for number, command in enumerate(first_steps(stack), start=1):
        rows.add_row(f"try {number}", escape(command))
    rows.add_section()
    rows.add_row("more", "`make demo` and `.venv/bin/finity status` in another terminal")
    return rows


def _mail(stack: Stack) -> str:
    """Says where mails go: to the embedded server, or to one that the environment names."""
    port = stack.stores.mail.port
    return f"`.venv/bin/finity mail` (SMTP on {LOOPBACK}:{port})" if port else "to FINITY_SMTP_HOST"


def first_steps(stack: Stack) -> list[str]:
    """Commands to copy: each works behind the one before it, with curl and sed alone."""
    url = stack.gateway_url
    login = (
        f"TOKEN=$(curl -s {url}/v1/sessions \\\n"
        "  -H 'content-type: application/json' -d '{\n"
        f'  "email": "{stack.credentials.admin_email}",\n'
        f'  "password": "{stack.credentials.admin_password}"}}\' \\\n'
        """  | sed -nE 's/.*"access_token": *"([^"]+)".*/\\1/p')"""
    )
    path = "users" if stack.administers else "users/me"
    users = f'curl -s {url}/v1/{path} \\\n  -H "authorization: Bearer $TOKEN"'
    return [f"curl -i {url}/healthz", login, users]
