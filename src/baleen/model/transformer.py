"""The whole network: embedding, layers under mHC, head. One forward for training, prefill and
decode.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from baleen.cache import LayerShape, LayerState, Span, State
from baleen.errors import UsageError
from baleen.kernels import product
from baleen.kernels.streams import expand
from baleen.model.attention import Attention
from baleen.model.config import LayerKind, ModelConfig
from baleen.model.decoder import Decoder
from baleen.model.hyper_connections import HyperConnection, StreamHead
from baleen.model.layers import RMSNorm
from baleen.model.moe import MoE
from baleen.model.packing import Packing
from baleen.model.padding import Padding
from baleen.model.trace import Trace

if TYPE_CHECKING:
    from baleen.model.checkpoint import Provenance

PREFILL_CHUNK = 1024
"""Without gradients, longer calls go through the layers in pieces of so many tokens, so that memory
grows with the piece and not with the square of the call. The result is the same."""


class Block(nn.Module):
    """One layer: attention, then experts, each inside its mHC site."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer

        def site() -> HyperConnection:
            return HyperConnection(
                config.hc_mult,
                config.hidden_size,
                config.hc_sinkhorn_iters,
                config.hc_eps,
                config.rms_norm_eps,
            )

        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config, layer)
        self.hc_attn = site()
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn = MoE(config, layer)
        self.hc_ffn = site()

    def forward(
        self,
        x_BTNd: Tensor,
        ids_BT: Tensor,
        span: Span | Packing,
        state: LayerState | None,
        trace: Trace | None,
    ) -> Tensor:
        """The streams behind this layer; a packed row has no state, it is whole documents."""
        mixing = self.hc_attn(x_BTNd, self.attn_norm)
        if isinstance(span, Packing):
            attended = span.attend(self.attn, mixing.input_BTd, trace)
        else:
            attended = self.attn(mixing.input_BTd, span, state, trace)
        x_BTNd = expand(attended, x_BTNd, mixing)
        mixing = self.hc_ffn(x_BTNd, self.ffn_norm)
        fed, routing = self.ffn(mixing.input_BTd, ids_BT)
        if trace is not None:
            trace.routings[self.layer] = routing
        return expand(fed, x_BTNd, mixing)


class Transformer(nn.Module):
    """A DeepSeek-V4 language model.

    Source: DeepSeek-V4 report section 2 (arXiv 2606.19348) and DeepSeek's released inference code;
    where they differ, the code.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, n) for n in range(config.num_hidden_layers))
        self.hc_head = StreamHead(
            config.hc_mult, config.hidden_size, config.hc_eps, config.rms_norm_eps
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.provenance: Provenance | None = None
        """Of a loaded model, what its folder said besides the values."""
        self.quant_sim = False
        """Whether quantised computing is simulated; switched by `simulate_quantization`."""
        self.mtp = nn.ModuleList()
        """The block that drafts the token after next, if the model has one; see `mtp.py`."""
        if config.num_nextn_predict_layers:
            from baleen.model.mtp import MTPBlock  # it is a `Block`, so it imports this file

            self.mtp.append(MTPBlock(config))
        self._decoder, self._drafter = Decoder(self), Decoder(self, drafts=True)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        weights: str = "decoded",
        revision: str | None = None,
        quant_sim: bool = False,
    ) -> Transformer:
        """Loads a model folder, or a Hub id `owner/name`, which is fetched first.

        `dtype` is what is computed in, None is fp32; what V4 keeps in fp32 stays so. `weights`:
        "decoded" for plain tensors, "packed" to keep codes in memory, "mapped" to read from the
        files what each token needs; see `formats.packed.Residence`. `quant_sim` computes as if the
        released kernels did, see `simulate_quantization`.

        Raises:
            CheckpointError: a tensor is missing, unexpected, of the wrong shape or dtype, or cannot
                be read; or the model cannot be fetched.
        """
        from baleen.model.checkpoint import load_checkpoint
        from baleen.model.formats.hub import resolve

        model = load_checkpoint(resolve(source, revision), dtype, weights).to(device)
        return model.simulate_quantization(quant_sim)

    def simulate_quantization(self, on: bool = True) -> Transformer:
        """Rounds activations where the released kernels compute in FP8 or FP4; returns the model.

        Gradients pass straight through. Weights stay what they are.
        """
        from baleen.model.formats.simulation import simulate

        simulate(self, on)
        return self

    def save_pretrained(
        self, folder: str | Path, format: str = "bf16", max_shard_bytes: int = 4 << 30
    ) -> None:
        """Writes `config.json` and safetensors under the released tensor names.

        `format` is "fp32", "bf16", "fp8" (dense matrices and experts) or "fp4" (experts; dense
        matrices in fp8). Weights that are as they were read are written as they were.
        """
        from baleen.model.checkpoint import save_checkpoint

        save_checkpoint(self, Path(folder), format, max_shard_bytes)

    def new_state(
        self, batch_size: int = 1, kv_dtype: str = "fp32", max_len: int | None = None
    ) -> State:
        """An empty past for `batch_size` sequences.

        `kv_dtype` is "fp32", "bf16" or "fp8" (latents in fp8 with a bf16 rotary part, the indexer's
        keys in fp4). With `max_len` all room is reserved at once, and a longer sequence refused.
        """
        config = self.config
        shapes = [
            LayerShape(
                config.head_dim,
                config.compress_ratios[layer],
                kind is LayerKind.CSA,
                config.index_head_dim if kind is LayerKind.CSA else 0,
                config.qk_rope_head_dim,
            )
            for layer, kind in enumerate(config.layer_kinds)
        ]
        return State(shapes, config.sliding_window, batch_size, kv_dtype, max_len)

    def forward(
        self,
        ids_BT: Tensor,
        state: State | None = None,
        logits_to_keep: int | None = None,
        counts_B: Tensor | None = None,
        trace: Trace | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits fp32 [B, T or kept, V] of the tokens that follow each of `ids_BT`.

        `state` holds what came before and takes these tokens in; without one the call starts at
        position 0. `counts_B` tells how many tokens of each row are real, the rest is padding on
        the right, which changes nothing and whose logits mean nothing. `attention_mask` [B, T], 1
        at tokens, says the same of pads on the left or on either side; give one of the two.
        `logits_to_keep` keeps the last so many columns.

        Raises:
            UsageError: ids, mask or room do not fit; nothing has changed then.
        """
        if attention_mask is None:
            return self.logits(self.hidden(ids_BT, state, counts_B, trace, logits_to_keep))
        if counts_B is not None:
            raise UsageError("give counts_B or attention_mask, not both")
        padding = Padding.of(attention_mask, ids_BT)
        moved = self.hidden(padding.to_left(ids_BT), state, padding.counts_B, trace)
        hidden = padding.back(moved)
        return self.logits(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])

    def without_mtp(self) -> Transformer:
        """Drops the MTP block, here and in the configuration; returns the model."""
        self.mtp = nn.ModuleList()
        self.config = dataclasses.replace(self.config, num_nextn_predict_layers=0)
        return self

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits of hidden vectors [..., d] as `hidden` returns them."""
        if isinstance(self.head, nn.Linear):
            return product(hidden.float(), self.head.weight, None)
        return self.head(hidden.float())  # in stored form

    def hidden(
        self,
        ids_BT: Tensor,
        state: State | None = None,
        counts_B: Tensor | None = None,
        trace: Trace | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """The normalised vectors [B, T or keep, d] that the head turns into logits; see `forward`.

        `keep` keeps the last so many columns, and spares the read-out of the others.
        """
        state, tokens = self._prepare(ids_BT, state), ids_BT.shape[1]
        skipped = 0 if keep is None else max(0, tokens - keep)
        if torch.is_grad_enabled() or trace is not None or tokens <= PREFILL_CHUNK:
            streams = self._chunk(ids_BT, state, counts_B, trace)
            return self.readout(streams[:, skipped:] if skipped else streams)
        outputs, start = [], 0
        for ids in ids_BT.split(PREFILL_CHUNK, dim=1):
            counts = None if counts_B is None else (counts_B - start).clamp(0, ids.shape[1])
            streams = self._chunk(ids, state, counts, None)
            if start + ids.shape[1] >= skipped:
                outputs.append(self.readout(streams[:, max(0, skipped - start) :]))
            start += ids.shape[1]
        return torch.cat(outputs, dim=1)

    def streams(
        self,
        ids_BT: Tensor,
        state: State | None = None,
        counts_B: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """The residual streams [B, T, N, d] behind the last layer, in one piece; see `forward`.

        `readout` makes of them what `hidden` returns; the MTP block takes them as they are.
        """
        return self._chunk(ids_BT, self._prepare(ids_BT, state), counts_B, trace)

    def packed_streams(
        self, ids_1L: Tensor, packing: Packing, trace: Trace | None = None
    ) -> Tensor:
        """`streams` [1, L, N, d] of documents in one row, each as if it were alone."""
        self._check_ids(ids_1L)
        if ids_1L.shape != (1, packing.num_tokens):
            raise UsageError(
                f"ids are {list(ids_1L.shape)}, the packing holds {packing.num_tokens} tokens"
            )
        x_BTNd: Tensor = self.embed(ids_1L).unsqueeze(2).expand(-1, -1, self.config.hc_mult, -1)
        for block in self.layers:
            x_BTNd = block(x_BTNd, ids_1L, packing, None, trace)
        return x_BTNd

    def readout(self, streams_BTNd: Tensor) -> Tensor:
        """The normalised vectors [B, T, d] of streams that left the last layer."""
        hidden: Tensor = self.hc_head(streams_BTNd, self.norm)
        return hidden

    def _prepare(self, ids_BT: Tensor, state: State | None) -> State:
        """The state that a call works on; refuses what would break it half-way."""
        self._check_ids(ids_BT)
        if state is None:
            state = self.new_state(len(ids_BT))
        if state.batch_size != len(ids_BT):
            raise UsageError(f"state holds {state.batch_size} rows, the call brings {len(ids_BT)}")
        state.check_room(ids_BT.shape[1])
        return state

    def _chunk(
        self, ids_BT: Tensor, state: State, counts_B: Tensor | None, trace: Trace | None
    ) -> Tensor:
        if trace is None and counts_B is None:
            stepped = self._decoder.step(ids_BT, state)
            if stepped is not None:
                return stepped
        span = Span.of(state.lengths_B, ids_BT.shape[1], counts_B)
        embedded = self.embed(ids_BT).unsqueeze(2)
        x_BTNd: Tensor = embedded.expand(-1, -1, self.config.hc_mult, -1)
        for block, layer_state in zip(self.layers, state.layers, strict=True):
            x_BTNd = block(x_BTNd, ids_BT, span, layer_state, trace)
        state.advance(span)
        return x_BTNd

    def _check_ids(self, ids_BT: Tensor) -> None:
        if ids_BT.dim() != 2 or ids_BT.dtype != torch.int64 or not ids_BT.numel():
            raise UsageError(
                f"ids must be a non-empty int64 [B, T], not {ids_BT.dtype} {list(ids_BT.shape)}"
            )
        low, high = int(ids_BT.min()), int(ids_BT.max())
        if low < 0 or high >= self.config.vocab_size:
            bad = low if low < 0 else high
            raise UsageError(
                f"token id {bad} is outside the vocabulary of {self.config.vocab_size}"
            )
