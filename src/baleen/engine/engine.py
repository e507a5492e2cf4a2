"""A loaded model and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from baleen.assets import nano_dir
from baleen.engine.session import Session
from baleen.engine.speculation import DraftingSession
from baleen.errors import CheckpointError
from baleen.model import ModelConfig, Transformer


class Engine:
    """What many sessions share and none of them changes."""

    def __init__(self, name: str, model: Transformer, tokenizer: Tokenizer) -> None:
        self.name, self.model, self.tokenizer = name, model.eval(), tokenizer

    @classmethod
    def load(cls, source: str | Path, num_threads: int | None = None) -> Engine:
        """Loads ``nano`` (the bundled checkpoint) or a model folder, in fp32.

        `num_threads` limits torch's threads in this process; small models are fastest with one.

        Raises:
            CheckpointError: weights or tokenizer are missing or damaged.
            ConfigError: `config.json` cannot be used.
        """
        folder = nano_dir() if source == "nano" else Path(source)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        model = Transformer.from_pretrained(folder, dtype=torch.float32)
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for any defect
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        return cls("nano" if source == "nano" else folder.name, model, tokenizer)

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def session(self, draft_tokens: int = 0) -> Session:
        """A new, empty conversation; with `draft_tokens` it decodes speculatively, to the same
        tokens.

        Raises:
            UsageError: drafts are asked of a model without an MTP block.
        """
        return DraftingSession(self.model, draft_tokens) if draft_tokens else Session(self.model)
