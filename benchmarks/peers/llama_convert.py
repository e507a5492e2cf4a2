"""Runs llama.cpp's converter on a model folder that has no tokenizer.

    python benchmarks/peers/llama_convert.py LLAMA_CPP FOLDER TARGET.gguf VOCAB_SIZE
    python benchmarks/peers/llama_convert.py LLAMA_CPP FOLDER TARGET.gguf TOKENIZER.json

The vocabulary is a stand-in of numbered tokens, where what is compared are logits by id, or that of
a byte-level tokenizer, where what is compared is text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Vocabulary(NamedTuple):
    """Tokens by id, which of them are special, and how bytes are merged to them."""

    names: list[str]
    special: frozenset[int]
    merges: list[str]


def read_vocabulary(given: str) -> Vocabulary:
    if given.isdecimal():
        return Vocabulary([f"token{n}" for n in range(int(given))], frozenset(), ["t o"])
    stored = json.loads(Path(given).read_text())
    added = {token["content"]: token["id"] for token in stored["added_tokens"]}
    ids = {**stored["model"]["vocab"], **added}
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["model"]["merges"]]
    return Vocabulary(sorted(ids, key=ids.__getitem__), frozenset(added.values()), merges)


def main(source: str, folder: str, target: str, vocabulary: str) -> None:
    sys.path[:0] = [source, str(Path(source) / "gguf-py")]
    import gguf
    from conversion.deepseek import DeepseekV4Model

    names, special, merges = read_vocabulary(vocabulary)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL

    class Given(DeepseekV4Model):  # type: ignore[misc, valid-type]
        model_arch = gguf.MODEL_ARCH.DEEPSEEK4

        def set_vocab(self) -> None:
            writer: Any = self.gguf_writer
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("default")
            writer.add_token_list([name.encode() for name in names])
            writer.add_token_types([control if n in special else normal for n in range(len(names))])
            writer.add_token_merges(merges)
            writer.add_bos_token_id(0)
            writer.add_eos_token_id(1)
            writer.add_add_bos_token(False)

    Given(Path(folder), gguf.LlamaFileType.MOSTLY_BF16, Path(target), eager=True).write()


if __name__ == "__main__":
    main(*sys.argv[1:5])
