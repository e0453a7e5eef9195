"""The command `finity`."""

import sys
from typing import Any

import click

from chassis.dsn import DatabaseError
from chassis.settings import SettingsError
from suite.commands.audit import audit
from suite.commands.demo import demo
from suite.commands.forget import forget
from suite.commands.gateway import gateway
from suite.commands.keys import keys
from suite.commands.mail import mail
from suite.commands.migrate import migrate
from suite.commands.outbox import outbox
from suite.commands.run import run
from suite.commands.status import status
from suite.commands.usage import usage
from suite.commands.users import users
from suite.errors import SuiteError


class Sentences(click.Group):
    """Says what went wrong in the sentence it was raised with, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SuiteError, DatabaseError, SettingsError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Sentences, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="finity")
def main() -> None:
    """The Finity suite on this machine."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Unicode must not stop the suite.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]


# A new command is a file in suite/commands/ and a line here.
main.add_command(run)
main.add_command(status)
main.add_command(outbox)
main.add_command(audit)
main.add_command(keys)
main.add_command(migrate)
main.add_command(gateway)
main.add_command(usage)
main.add_command(users)
main.add_command(demo)
main.add_command(forget)
main.add_command(mail)


if __name__ == "__main__":
    # `make` runs it as a module; help names what a person can type in the checkout.
    main(prog_name=".venv/bin/finity")
