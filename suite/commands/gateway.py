"""`finity gateway`: Envoy's configuration."""

from pathlib import Path

import click

from chassis.settings import load


@click.group()
def gateway() -> None:
    """Work with the HTTP gateway."""


@gateway.command()
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: stdout.")
def render(output: Path | None) -> None:
    """Write Envoy's configuration from the contracts and the FINITY_GATEWAY_… settings."""
    # Reading the descriptors takes longer than every other command.
    from gateway.config import GatewaySettings  # noqa: PLC0415
    from gateway.render import render as render_envoy  # noqa: PLC0415

    text = render_envoy(load(GatewaySettings))
    if output:
        output.write_text(text)
    else:
        click.echo(text)
