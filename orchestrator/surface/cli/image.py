"""``ironcd image``: the disk that virtual machines start from."""

from __future__ import annotations

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

app = typer.Typer(help="Images: the disks that virtual machines start from.", no_args_is_help=True)


@app.command("list")
def list_images(*, as_json: AsJson = False) -> None:
    """List the images of this host.

    Example: [bold]ironcd image list[/bold]
    """
    from pathlib import Path

    from orchestrator.surface.cli.terminal import print_json, print_table
    from orchestrator.surface.images import images_in

    images = images_in(Path(GLOBAL.settings().host_settings().cache_dir))
    if as_json:
        print_json(images)
        return
    rows = ((i.name, i.digest, i.runner_version, i.cloud_init, i.created) for i in images)
    print_table(("name", "digest", "runner", "cloud-init", "made"), rows)
