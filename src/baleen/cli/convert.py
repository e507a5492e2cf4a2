"""`baleen convert`: a model folder in another number format, one tensor in memory at a time."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("source", metavar="DIR|ID|nano")
@click.argument("target", metavar="DIR", type=click.Path(file_okay=False))
@click.option(
    "--format",
    "format",
    type=click.Choice(["fp4", "fp8", "bf16", "fp32"]),
    required=True,
    help="fp4: experts in FP4, dense matrices in FP8, as released.",
)
@click.option("--max-shard", default="4G", show_default=True, help="Largest weight file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(source: str, target: str, format: str, max_shard: str, as_json: bool) -> None:
    """Rewrite a model folder in another number format.

    What is stored as wanted already is copied bit by bit, draft block included; names become the
    released ones; the other files of the folder are copied.

    \b
    Examples:
      baleen convert ./my-model ./my-model-fp4 --format fp4
      baleen convert nano ./nano-fp32 --format fp32
    """
    from pathlib import Path

    from baleen.agent.config import NANO
    from baleen.assets import nano_dir
    from baleen.cli.cost import amount, size
    from baleen.model.formats.convert import convert_folder
    from baleen.model.formats.hub import resolve

    folder = nano_dir() if source == NANO else resolve(source)
    report = convert_folder(folder, Path(target), format, amount(max_shard))
    if as_json:
        click.echo(json.dumps({"target": target, "format": format, **report._asdict()}))
        return
    click.echo(
        f"{target}: {report.tensors} tensors in {report.files} files, {size(report.bytes_after)} "
        f"(before: {size(report.bytes_before)})"
    )
