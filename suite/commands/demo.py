"""`finity demo`: a story told against the running suite."""

import os

import click

from suite import state
from suite.errors import SuiteError


@click.command()
@click.option("--gateway", metavar="URL", help="Default: the suite that runs here.")
def demo(gateway: str | None) -> None:
    """Tell a story against the running suite: three users, real usage, a refusal.

    Needs the suite of `make run`; with --gateway another one, whose usage service and
    key are FINITY_USAGE_ADDRESS and FINITY_SERVICE_KEY. Every telling makes three new users.
    """
    # gRPC and the contracts take longer to load than other commands to run.
    from suite.demo.client import Gateway  # noqa: PLC0415
    from suite.demo.story import Story  # noqa: PLC0415
    from suite.importing import target  # noqa: PLC0415

    if gateway and not gateway.startswith(("http://", "https://")):
        raise SuiteError(f"--gateway must be a URL such as http://127.0.0.1:8080, not {gateway}.")
    directory = state.default_directory()
    url = gateway or target.gateway(directory)
    Story(Gateway(url), target.usage(os.environ, directory), directory).tell()
