"""`baleen train`: the small checkpoint's training, stage by stage or as a whole."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click

from baleen.errors import MissingExtraError, UsageError

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/nano"),
    show_default=True,
    help="Folder of the training run; a run that was stopped goes on from it.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    default=min(2, os.cpu_count() or 1),
    show_default=True,
    help="Processes of one thread each. The result depends on their number.",
)


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.group()
def train() -> None:
    """Train the small checkpoint: sft, then grpo; or both with `recipe nano`.

    \b
    Examples:
      baleen train recipe nano                     # what made the bundled checkpoint
      baleen train sft --out runs/mine --scale 0.1 # a tenth of the steps, to try things
      baleen train grpo --out runs/mine --steps 20
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingExtraError("training needs torch", remedy="pip install 'baleen[rl]'") from None


@train.command()
@out_option
@workers_option
@click.option(
    "--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Times the steps."
)
@click.option("--seed", type=int, default=None, help="Seed of weights and data.")
def sft(out: Path, workers: int, scale: float, seed: int | None) -> None:
    """Imitate solutions: tokenizer, then three supervised stages, into OUT/sft."""
    from baleen.rl.pipeline import run_sft
    from baleen.rl.sft import SFTConfig, shortened

    config = shortened(SFTConfig(), scale) if scale != 1 else SFTConfig()
    if seed is not None:
        config = dataclasses.replace(config, seed=seed)
    run_sft(out, config, workers, _say)


@train.command()
@out_option
@workers_option
@click.option("--steps", type=click.IntRange(1), default=None, help="Gradient steps.")
@click.option("--groups", type=click.IntRange(1), default=None, help="Tasks per step.")
@click.option("--group-size", type=click.IntRange(2), default=None, help="Episodes per task.")
@click.option("--lr", type=float, default=None, help="Learning rate.")
@click.option("--seed", type=int, default=None, help="Seed of tasks and sampling.")
def grpo(out: Path, workers: int, **values: object) -> None:
    """Improve OUT/sft by reward, with real sandboxes, into OUT/rl."""
    from baleen.rl.grpo import GRPOConfig
    from baleen.rl.pipeline import run_grpo

    if not (out / "sft").exists():
        raise UsageError(f"{out / 'sft'} does not exist", remedy=f"baleen train sft --out {out}")
    given = {name: value for name, value in values.items() if value is not None}
    run_grpo(out, dataclasses.replace(GRPOConfig(), **given), workers, _say)  # type: ignore[arg-type]


@train.command()
@click.argument("name", type=click.Choice(["nano"]))
@out_option
@workers_option
@click.option(
    "--ship",
    "target",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where the finished model folder goes; by default into the package.",
)
def recipe(name: str, out: Path, workers: int, target: Path | None) -> None:
    """Train the bundled checkpoint from nothing and put it in its place."""
    from baleen.assets import nano_dir
    from baleen.rl.grpo import GRPOConfig
    from baleen.rl.pipeline import run_grpo, run_sft, ship
    from baleen.rl.sft import SFTConfig

    run_sft(out, SFTConfig(), workers, _say)
    run_grpo(out, GRPOConfig(), workers, _say)
    ship(out, target or nano_dir())
    _say(f"{name} is in {target or nano_dir()}")
