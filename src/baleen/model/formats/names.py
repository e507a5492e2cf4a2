"""Tensor names: whatever a file spells, the released name.

Three spellings are about: the released one; transformers' in memory; and what transformers' own
`save_pretrained` writes, which is the released one behind `model.`, but for some names that it
leaves as they are in memory and one (`attn.norm`) that is neither. All renaming is here, so a new
export is one more line.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_RULES = [
    (r"^model\.", ""),
    (r"^embed_tokens\.", "embed."),
    (r"^lm_head\.", "head."),
    (r"^hc_head\.(hc_)?(fn|base|scale)$", r"hc_head_\2"),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.", ".ffn."),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.attn_hc\.(fn|base|scale)$", r".hc_attn_\1"),
    (r"\.ffn_hc\.(fn|base|scale)$", r".hc_ffn_\1"),
    (r"\.attn\.sinks$", ".attn.attn_sink"),
    (r"\.compressor\.indexer\.scorer\.", ".indexer."),
    (r"\.compressor\.indexer\.q_b_proj\.", ".indexer.wq_b."),
    (r"\.compressor\.indexer\.(\w+_proj|position_bias|kv_norm)", r".indexer.compressor.\1"),
    (r"\.compressor\.kv_proj\.", ".compressor.wkv."),
    (r"\.compressor\.gate_proj\.", ".compressor.wgate."),
    (r"\.compressor\.kv_norm\.", ".compressor.norm."),
    (r"\.compressor\.position_bias$", ".compressor.ape"),
    (r"\.attn\.q_a_norm\.", ".attn.q_norm."),
    (r"\.attn\.norm\.", ".attn.kv_norm."),
    (r"\.attn\.([qo])_([ab])_proj\.", r".attn.w\1_\2."),
    (r"\.attn\.kv_proj\.", ".attn.wkv."),
    (r"\.gate\.e_score_correction_bias$", ".gate.bias"),
    (r"\.shared_experts\.gate_proj\.", ".shared_experts.w1."),
    (r"\.shared_experts\.down_proj\.", ".shared_experts.w2."),
    (r"\.shared_experts\.up_proj\.", ".shared_experts.w3."),
    (r"\.weight_scale_inv$", ".scale"),
]
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]
_STACK = re.compile(r"(.*\.ffn\.experts)\.(gate_up_proj|down_proj)$")
_MATRIX = re.compile(r"\.weight$")


def released_name(name: str) -> str:
    """The released name of a tensor; a name of no known spelling comes back as it is."""
    for pattern, replacement in _COMPILED:
        name = pattern.sub(replacement, name)
    return name


def scale_name(weight_name: str) -> str:
    """Where the scales of a quantised matrix stand."""
    return _MATRIX.sub(".scale", weight_name)


class StackedExperts(NamedTuple):
    """What one of transformers' tensors over all experts of a layer holds."""

    prefix: str
    """`layers.N.ffn.experts`"""
    matrices: tuple[str, ...]
    """The expert matrices that lie one after the other along dimension 1."""

    def names(self, expert: int) -> list[str]:
        return [f"{self.prefix}.{expert}.{matrix}.weight" for matrix in self.matrices]


def stacked_experts(released: str) -> StackedExperts | None:
    """How to cut a tensor that holds every expert of a layer; None for any other tensor."""
    found = _STACK.fullmatch(released)
    if found is None:
        return None
    return StackedExperts(found[1], ("w1", "w3") if found[2] == "gate_up_proj" else ("w2",))
