"""From nothing to the bundled checkpoint: preflight, tokenizer, supervised training, RL, curve."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from baleen.agent.observation import REVISION
from baleen.rl.grpo import GRPOConfig, train_grpo
from baleen.rl.parallel import launch
from baleen.rl.preflight import preflight
from baleen.rl.recipe import NANO_CONFIG, make_tokenizer
from baleen.rl.sft import SFTConfig, train_sft

Say = Callable[[str], None]


def run_sft(folder: Path, config: SFTConfig, workers: int, say: Say) -> None:
    """Tokenizer and supervised policy into `folder`; a stage that is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    preflight(config.seed)
    say("preflight: solutions score 1, doing nothing scores 0")
    if not (folder / "tokenizer.json").exists():
        make_tokenizer(folder / "tokenizer.json")
    if (folder / "sft").exists():
        say(f"supervised policy found in {folder / 'sft'}")
        return
    _keep_config(folder, "sft", dataclasses.asdict(config), workers)
    launch(train_sft, workers, NANO_CONFIG.to_hf(), config, folder)


def run_grpo(folder: Path, config: GRPOConfig, workers: int, say: Say) -> None:
    """Improves `folder/sft` into `folder/rl`."""
    preflight(config.seed)
    say("preflight: solutions score 1, doing nothing scores 0")
    _keep_config(folder, "grpo", dataclasses.asdict(config), workers)
    launch(train_grpo, workers, folder / "sft", config, folder)


def ship(folder: Path, target: Path) -> None:
    """Makes a model folder of the trained policy: weights as released, tokenizer, curves."""
    import torch

    from baleen.model import Transformer

    model = Transformer.from_pretrained(folder / "rl", dtype=torch.float32)
    model.save_pretrained(target, format="fp4")
    shutil.copy2(folder / "tokenizer.json", target / "tokenizer.json")
    facts = {"observation_revision": REVISION, "encoder_revision": "0731", "effort": "low"}
    (target / "training.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    for name in ("sft.csv", "grpo.csv"):
        shutil.copy2(folder / name, target / name)
    plot_curves(target / "sft.csv", target / "grpo.csv", target / "curve.png")


def plot_curves(sft: Path, grpo: Path, image: Path) -> None:
    """Both learning curves side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    rows = _read(sft)
    steps = [float(row["step"]) for row in rows]
    left.semilogy(steps, [float(row["loss"]) for row in rows], label="cross-entropy")
    left.semilogy(steps, [float(row["indexer_kl"]) for row in rows], label="indexer KL")
    for stage in ("sparse", "mixed"):
        first = next((float(row["step"]) for row in rows if row["stage"] == stage), None)
        if first is not None:
            left.axvline(first, color="0.6", linestyle=":")
            left.text(first, left.get_ylim()[1], f" {stage}", va="top", color="0.4")
    left.set(title="supervised", xlabel="step", ylabel="nats per token")
    left.legend(loc="lower left")
    rows = _read(grpo)
    steps = [float(row["step"]) for row in rows]
    right.plot(steps, [float(row["reward"]) for row in rows], label="reward")
    right.plot(steps, [float(row["tool_use"]) for row in rows], label="episodes that use the tool")
    right.set(title="GRPO, real sandboxes", xlabel="step", ylabel="share", ylim=(0, 1.02))
    right.legend(loc="lower right")
    figure.savefig(image, dpi=110)
    plt.close(figure)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _keep_config(folder: Path, name: str, values: dict[str, object], workers: int) -> None:
    text = json.dumps({**values, "workers": workers}, indent=2)
    (folder / f"{name}.json").write_text(text + "\n", "utf-8")
