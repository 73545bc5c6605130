"""``ironcd image``: the disk that virtual machines start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.surface.cli.options import GLOBAL, AsJson

if TYPE_CHECKING:
    from runner_image.store import Image
    from runner_image.tarball import RunnerSource

app = typer.Typer(help="Images: the disks that virtual machines start from.", no_args_is_help=True)


@app.command()
def build(
    *,
    name: Annotated[str, typer.Option(help="Name that classes ask for the image by.")] = "default",
    runner: Annotated[
        str,
        typer.Option(help="Tarball of GitHub's runner: a file or URL. Default: GitHub's release of --runner-version."),
    ] = "",
    runner_version: Annotated[str, typer.Option(help="Version of the runner, as 2.336.0.")] = "",
    runner_sha256: Annotated[str, typer.Option(help="SHA-256 of the tarball, from the release's page.")] = "",
    package: Annotated[
        list[str] | None, typer.Option(help="Debian package to install beyond the usual. May be repeated.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Even where an image of this recipe is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build an image: Debian 13, cloud-init, and GitHub's runner. One of the same recipe is used as it is.

    Example: [bold]ironcd image build --runner-version 2.336.0 --runner-sha256 DIGEST --package build-essential[/bold]
    """
    from runner_image.build import build_image

    source = _source(runner, runner_version, runner_sha256)
    cache = Path(GLOBAL.settings().host_settings().cache_dir)
    image = build_image(
        cache,
        source,
        name=name,
        extra_packages=tuple(package or ()),
        rebuild=rebuild,
        progress=lambda step: typer.echo(f"... {step}", err=True),
    )
    _print([image], as_json=as_json)


@app.command("list")
def list_images(*, as_json: AsJson = False) -> None:
    """List the images of this host.

    Example: [bold]ironcd image list[/bold]
    """
    from runner_image import store

    _print(store.list_images(Path(GLOBAL.settings().host_settings().cache_dir)), as_json=as_json)


@app.command()
def prune(*, as_json: AsJson = False) -> None:
    """Remove the images that have no name and that no machine runs from.

    Example: [bold]ironcd image prune[/bold]
    """
    from orchestrator.host.paths import host_paths
    from orchestrator.surface.cli.terminal import print_json
    from runner_image import store

    host = GLOBAL.settings().host_settings()
    removed = store.prune(Path(host.cache_dir), host_paths(host).disks)
    if as_json:
        print_json({"removed": removed})
    else:
        typer.echo("\n".join(f"removed {digest}" for digest in removed) or "nothing to remove")


def _source(runner: str, version: str, sha256: str) -> RunnerSource:
    from orchestrator.core.errors import UserError
    from runner_image.tarball import RunnerSource, github_runner

    if not version or not sha256:
        raise UserError(
            "the runner's version and SHA-256 are wanted",
            code="bad-option",
            remedy="Take both from the page of the release of actions/runner: --runner-version and --runner-sha256.",
        )
    return RunnerSource(runner, sha256, version) if runner else github_runner(version, sha256)


def _print(images: list[Image], *, as_json: bool) -> None:
    from orchestrator.surface.cli.terminal import print_json, print_table

    if as_json:
        print_json([{"name": image.name, "folder": str(image.folder), **_facts(image)} for image in images])
        return
    columns = ("name", "digest", "runner", "cloud-init", "kernel", "#packages", "made")
    rows = (
        (image.name, m.digest[:12], m.runner_version, m.cloud_init, m.kernel, m.packages, m.created)
        for image in images
        for m in (image.manifest,)
    )
    print_table(columns, rows)


def _facts(image: Image) -> dict[str, object]:
    import msgspec

    return msgspec.structs.asdict(image.manifest)
