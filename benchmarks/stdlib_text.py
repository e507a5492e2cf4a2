"""The Python standard library's sources as tokens: a text that every machine has.

Files are split by the hash of their names, one in twenty held out. The tokenizer is trained on the
rest. Both are kept in a folder, so that a run that goes on sees the same text.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer

from baleen.protocol.tokens import ALL as SPECIAL_TOKENS
from baleen.protocol.tokens import EOS
from baleen.rl.tokenizer import train_tokenizer

HELD_OUT_ONE_IN = 20
TOKENIZER_EVERY = 8
"""One file in so many teaches the tokenizer."""


def source_files() -> list[Path]:
    """The library itself, without its tests: some 11 MB."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    return sorted(
        path
        for path in root.rglob("*.py")
        if not left_out & set(path.relative_to(root).parts) and path.stat().st_size
    )


def is_held_out(path: Path) -> bool:
    root = Path(sysconfig.get_path("stdlib"))
    name = str(path.relative_to(root))
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


class StdlibText:
    """Training and held-out tokens; every file ends with the end-of-sentence token."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer_file, tokens_file = folder / "tokenizer.json", folder / "tokens.pt"
        if not tokens_file.exists():
            self._prepare(tokenizer_file, tokens_file, vocab_size)
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        held = torch.load(tokens_file, weights_only=True)
        self.train: torch.Tensor = held["train"]
        self.held_out: torch.Tensor = held["held_out"]

    @staticmethod
    def _prepare(tokenizer_file: Path, tokens_file: Path, vocab_size: int) -> None:
        files = source_files()
        texts = {path: path.read_text("utf-8", errors="replace") for path in files}
        learned = [texts[path] for path in files if not is_held_out(path)][::TOKENIZER_EVERY]
        tokenizer = train_tokenizer(learned, vocab_size, list(SPECIAL_TOKENS))
        tokenizer.save(str(tokenizer_file))
        end = tokenizer.token_to_id(EOS)
        parts: dict[str, list[int]] = {"train": [], "held_out": []}
        for path in files:
            ids = tokenizer.encode(texts[path]).ids
            parts["held_out" if is_held_out(path) else "train"] += [*ids, end]
        partial = tokens_file.with_suffix(".partial")
        torch.save({name: torch.tensor(ids) for name, ids in parts.items()}, partial)
        partial.replace(tokens_file)

    def batch(self, rows: int, length: int, seed: str) -> torch.Tensor:
        """Random stretches [rows, length] of the training text; the same seed draws the same."""
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(number)
        starts = torch.randint(len(self.train) - length, (rows, 1), generator=generator)
        return self.train[starts + torch.arange(length)]

    def held_out_rows(self, rows: int, length: int) -> torch.Tensor:
        """Evenly spaced stretches of the held-out text."""
        last = len(self.held_out) - length
        starts = torch.linspace(0, last, rows).long().unsqueeze(1)
        return self.held_out[starts + torch.arange(length)]
