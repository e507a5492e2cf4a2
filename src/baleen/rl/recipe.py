"""The recipe of the bundled checkpoint: its sizes and its tokenizer."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer

from baleen.agent.prompt import NANO
from baleen.model import ModelConfig
from baleen.protocol import Encoder
from baleen.protocol.tokens import ALL as SPECIAL_TOKENS
from baleen.rl import demonstrations
from baleen.rl.corpus import conversation
from baleen.rl.tasks import Split
from baleen.rl.tokenizer import train_tokenizer

VOCAB_SIZE = 768
TOKENIZER_SEED = 1
TOKENIZER_EPISODES = 3000

NANO_CONFIG = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=64,
    qk_rope_head_dim=16,
    q_lora_rank=64,
    o_groups=2,
    o_lora_rank=64,
    sliding_window=64,  # a thought and its command; the way back to the question is through blocks
    compress_ratios=(0, 4, 16, 4),
    index_n_heads=4,
    index_head_dim=32,
    index_topk=32,  # of about 140 blocks at an episode's end
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
    num_hash_layers=1,
    hc_mult=2,
    hc_sinkhorn_iters=10,
    num_nextn_predict_layers=0,
    max_position_embeddings=4096,
    initializer_range=0.05,
)


def make_tokenizer(path: Path) -> Tokenizer:
    """Trains the tokenizer on conversations of the training split and saves it.

    The Tools block, which is the same in all, comes with one in ten of them: enough for its words
    to become tokens, too little for them to crowd out the pieces of words that questions are made
    of.
    """
    rng = random.Random(TOKENIZER_SEED)
    encoder = Encoder(revision=NANO.revision)
    texts: list[str] = []
    for number in range(TOKENIZER_EPISODES):
        task = demonstrations.draw_task(rng, Split.TRAIN)
        messages = conversation(task.question, demonstrations.clean(rng, task))
        prompt = encoder.encode(messages, tools=list(NANO.tools), effort=NANO.effort)
        pieces = [text for text, is_special in prompt.segments if not is_special]
        texts += pieces if number % 10 == 0 else pieces[-3 * len(messages) :]
    tokenizer = train_tokenizer(texts, VOCAB_SIZE, list(SPECIAL_TOKENS))
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer
