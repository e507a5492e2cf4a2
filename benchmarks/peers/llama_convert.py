"""Runs llama.cpp's converter on a model folder that has no tokenizer.

    python benchmarks/peers/llama_convert.py LLAMA_CPP FOLDER TARGET.gguf VOCAB_SIZE

The vocabulary is a stand-in of numbered tokens: what is compared are logits by id.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main(source: str, folder: str, target: str, vocab_size: int) -> None:
    sys.path[:0] = [source, str(Path(source) / "gguf-py")]
    import gguf
    from conversion.deepseek import DeepseekV4Model

    class Nameless(DeepseekV4Model):  # type: ignore[misc, valid-type]
        model_arch = gguf.MODEL_ARCH.DEEPSEEK4

        def set_vocab(self) -> None:
            writer: Any = self.gguf_writer
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("default")
            writer.add_token_list([f"token{n}".encode() for n in range(vocab_size)])
            writer.add_token_types([gguf.TokenType.NORMAL] * vocab_size)
            writer.add_token_merges(["t o"])
            writer.add_bos_token_id(0)
            writer.add_eos_token_id(1)
            writer.add_add_bos_token(False)

    Nameless(Path(folder), gguf.LlamaFileType.MOSTLY_BF16, Path(target), eager=True).write()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
