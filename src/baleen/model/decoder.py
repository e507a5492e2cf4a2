"""Tokens of one sequence through the network in a single native call.

A small model's layers take microseconds and Python's way between them takes longer; with many
tokens it is the way of numbers to memory and back between one operation and the next. The native
form runs the same operations in the order of `transformer.py`, on the same weights and state.
Up to 16 tokens that come together give the bits that they would have given one by one; longer calls
have bits of their own, however they are cut and whatever the number of threads.
"""

from __future__ import annotations

import ctypes
from operator import attrgetter, getitem
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor, nn

from baleen.cache import DisjointState, LayerState, OverlapState, State
from baleen.kernels.backend import Backend, preferred
from baleen.kernels.native import (
    KINDS,
    MATRIX_KINDS,
    VECTOR,
    CompressorArgs,
    JoinArgs,
    LayerArgs,
    Matrix,
    SiteArgs,
    StepArgs,
    library,
)
from baleen.kernels.select import nan_score
from baleen.model.compressor import Compressor
from baleen.model.formats.packed import PackedExperts, StoredExperts, StoredLinear, StoredMatrix
from baleen.model.hyper_connections import HyperConnection
from baleen.model.moe import Experts

if TYPE_CHECKING:
    from baleen.model.transformer import Block, Transformer


_version_of = attrgetter("_version")

PARTS = ("streams", "project", "compress", "select", "attend", "experts")
"""What the native form can tell the time of; `select` is the indexer's queries, scan and choice."""


class Decoder:
    """Holds the addresses of a model's weights between steps, and checks them at each.

    Of its layers, or with `drafts` of its MTP block alone.
    """

    def __init__(self, model: Transformer, drafts: bool = False) -> None:
        self._model = ref(model)  # the model owns this
        self._drafts = drafts
        self._seen: list[int] = []
        """Where the weights lay, and the versions of those that were copied."""
        self._watched: list[tuple[Any, ...]] = []
        """Where each weight hangs: the modules' dictionaries, and the names in them; walking the
        modules takes longer than a layer."""
        self._layers: ctypes.Array[LayerArgs] | None = None
        self._args = StepArgs()
        self.seconds: ctypes.Array[ctypes.c_double] | None = None
        """If given, the seconds of each of `PARTS` are added up here."""
        self._kept: list[Tensor] = []
        """fp32 forms of small weights; the addresses point here."""
        self._copied: list[Tensor] = []
        """Weights of which `_kept` holds a copy, so that a change of theirs has to be noticed."""

    def __deepcopy__(self, memo: dict[int, object]) -> Decoder:
        model = self._model()
        assert model is not None, "a decoder does not outlive its model"
        return Decoder(memo[id(model)], self._drafts)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[object, ...]:
        model = self._model()
        assert model is not None, "a decoder does not outlive its model"
        return (Decoder, (model, self._drafts))

    def step(
        self, ids_BT: Tensor, state: State, streams_BTNd: Tensor | None = None
    ) -> Tensor | None:
        """The streams [1, T, N, d] behind the last layer, or None if the call is not for this path.

        A draft takes the streams that `ids_BT` follow.

        Raises:
            NumericsError: a score is NaN.
        """
        count = ids_BT.shape[1]
        if len(ids_BT) > 1:
            return None
        if torch.is_grad_enabled() or preferred() is not Backend.NATIVE:
            return None
        compiled, model = library(), self._model()
        if compiled is None or model is None or not self._prepare(model):
            return None
        position = int(state.lengths_B[0])
        for number, layer in enumerate(state.layers):
            if not _place_state(self._layers_of()[number], layer, position + count):
                return None
        args = self._args
        args.kind = KINDS[state.layers[0].window.layout.kind]
        ids_BT = ids_BT.contiguous()
        args.tokens, args.count, args.position = ids_BT.data_ptr(), count, position
        args.threads = torch.get_num_threads()
        args.seconds = None if self.seconds is None else ctypes.addressof(self.seconds)
        out = torch.empty(1, count, model.config.hc_mult, model.config.hidden_size)
        args.out = out.data_ptr()
        if streams_BTNd is not None:
            streams_BTNd = streams_BTNd.float().contiguous()
            args.join.streams = streams_BTNd.data_ptr()
        if not compiled.baleen_step(ctypes.byref(args)):
            raise nan_score()
        for layer in state.layers:
            for _, part in layer.parts():
                ratio = part.ratio
                part.entries.wrote((position + count) // ratio - position // ratio)
        state.lengths_B = state.lengths_B + count
        return out.to(model.embed.weight.dtype)

    def _layers_of(self) -> ctypes.Array[LayerArgs]:
        assert self._layers is not None
        return self._layers

    def _prepare(self, model: Transformer) -> bool:
        """Takes the weights' addresses anew if any tensor was replaced or changed."""
        if not self._watched:
            places = [
                (owner, name)
                for part in (model.embed, *self._blocks(model))
                for module in part.modules()
                for owner in _tensors_of(module)
                for name, weight in owner.items()
                if weight is not None
            ]
            self._watched = list(zip(*places, strict=True))
        # some hundred weights at each token: mapped, since a loop takes twice as long
        weights: list[Tensor] = list(map(getitem, *self._watched))
        seen = [*map(Tensor.data_ptr, weights), *map(_version_of, self._copied)]
        if seen != self._seen:
            self._layers, self._kept, self._copied = None, [], []
            if _suits(model, self._blocks(model)):
                self._describe(model)
            copied = map(_version_of, self._copied)
            self._seen = [*map(Tensor.data_ptr, weights), *copied]
        return self._layers is not None and self._untouched(model)

    def _blocks(self, model: Transformer) -> list[Block]:
        return list(model.mtp if self._drafts else model.layers)  # type: ignore[arg-type]

    def _describe(self, model: Transformer) -> None:
        config, args = model.config, self._args
        blocks = self._blocks(model)
        self._layers = (LayerArgs * len(blocks))()
        for target, block in zip(self._layers, blocks, strict=True):
            self._describe_layer(target, block)
        args.layers = self._layers
        args.embedding = Matrix.of(model.embed.weight)
        if self._drafts:
            drafter: Any = model.mtp[0]
            norms = self._plain(drafter.enorm.weight), self._plain(drafter.hnorm.weight)
            args.join = JoinArgs(_matrix(drafter.e_proj), _matrix(drafter.h_proj), *norms)
        args.num_layers = len(blocks)
        args.width, args.streams = config.hidden_size, config.hc_mult
        args.iterations, args.hc_eps = config.hc_sinkhorn_iters, config.hc_eps
        args.norm_eps, args.limit = config.rms_norm_eps, config.swiglu_limit
        args.heads, args.head_width = config.num_attention_heads, config.head_dim
        args.rope, args.q_rank = config.qk_rope_head_dim, config.q_lora_rank
        args.groups, args.group_rank = config.o_groups, config.o_lora_rank
        args.window = config.sliding_window
        args.index_heads, args.index_width = config.index_n_heads, config.index_head_dim
        args.experts = config.n_routed_experts
        args.experts_per_token = config.num_experts_per_tok
        args.expert_width = config.moe_intermediate_size
        args.shared_width = config.moe_intermediate_size * config.n_shared_experts
        args.scaling = config.routed_scaling_factor
        args.narrow = model.embed.weight.dtype == torch.bfloat16

    def _untouched(self, model: Transformer) -> bool:
        """Whether no layer has been told to attend otherwise, as ablations do."""
        for block in self._blocks(model):
            attn = block.attn
            if not attn.sees_blocks or attn.quantize is not None:
                return False
            if attn.indexer is not None:
                if "select" in attn.indexer.__dict__:
                    return False
                self._args.topk = attn.indexer.topk
        return True

    def _describe_layer(self, target: LayerArgs, block: Block) -> None:
        attn, ffn, plain = block.attn, block.ffn, self._plain
        target.attention_site = self._site(block.hc_attn, block.attn_norm)
        target.feed_site = self._site(block.hc_ffn, block.ffn_norm)
        for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b"):
            setattr(target, name, _matrix(getattr(attn, name)))
        target.q_norm, target.kv_norm = plain(attn.q_norm.weight), plain(attn.kv_norm.weight)
        target.sinks = plain(attn.attn_sink)
        target.frequencies = attn.frequencies.data_ptr()
        self._kept.append(attn.frequencies)
        if attn.compressor is not None:
            target.compressor = self._compressor(attn.compressor)
        if attn.indexer is not None:
            target.indexer = self._compressor(attn.indexer.compressor)
            target.index_wq_b = _matrix(attn.indexer.wq_b)
            target.index_weights = _matrix(attn.indexer.weights_proj)
        target.gate = Matrix.of(ffn.gate.weight)
        if ffn.gate.bias is None:
            table = ffn.gate.get_buffer("tid2eid")
            self._kept.append(table)
            target.table = table.data_ptr()
        else:
            target.gate_bias = plain(ffn.gate.bias)
        for name in ("w1", "w3", "w2"):
            setattr(target, name, _stack(ffn.experts, name))
            setattr(target, f"shared_{name}", _matrix(getattr(ffn.shared_experts, name)))

    def _site(self, site: HyperConnection, norm: nn.Module) -> SiteArgs:
        weights = (site.fn, site.base, site.scale, norm.weight)
        return SiteArgs(*(self._plain(weight) for weight in weights))  # type: ignore[arg-type]

    def _compressor(self, compressor: Compressor) -> CompressorArgs:
        return CompressorArgs(
            _matrix(compressor.wkv),
            _matrix(compressor.wgate),
            ape=self._plain(compressor.ape),
            norm=self._plain(compressor.norm.weight),
            ratio=compressor.ratio,
            width=compressor.width,
            overlaps=compressor.halves - 1,
        )

    def _plain(self, weight: Tensor) -> int:
        """Where a weight lies as fp32."""
        plain = weight.detach().float().contiguous()
        self._kept.append(plain)
        if plain.data_ptr() != weight.data_ptr():
            self._copied.append(weight)
        return plain.data_ptr()


def _matrix(linear: nn.Module) -> Matrix:
    if isinstance(linear, StoredLinear):
        return Matrix.of(*linear.stored)
    assert isinstance(linear, nn.Linear)
    return Matrix.of(linear.weight)


def _stack(experts: nn.Module, name: str) -> Matrix:
    """All experts' matrices of one name."""
    if isinstance(experts, PackedExperts):
        return Matrix.of(*experts.stack(name))
    return Matrix.of(getattr(experts, name))


def _tensors_of(module: nn.Module) -> list[dict[str, Any]]:
    """Where a module keeps weights: parameters, and what is stored as codes."""
    if isinstance(module, StoredMatrix | StoredExperts):
        return [module._parameters, module._buffers]
    return [module._parameters]


def _suits(model: Transformer, blocks: list[Block]) -> bool:
    """Whether every weight is of a kind, place and width that the native form reads."""
    config = model.config
    widths = (
        config.hidden_size,
        config.head_dim,
        config.q_lora_rank,
        config.group_width,
        config.o_groups * config.o_lora_rank,
        config.index_head_dim,
        config.moe_intermediate_size,
    )
    plain = all(
        (p.dtype, None) in MATRIX_KINDS and p.device.type == "cpu" and p.is_contiguous()
        for p in model.parameters()
    )
    stacked = all(type(b.ffn.experts) in (Experts, PackedExperts) for b in blocks)
    linear = all(type(m) is nn.Linear for m in model.modules() if isinstance(m, nn.Linear))
    mapped = any(isinstance(m, StoredMatrix) and m.mapped for m in model.modules())
    buffers = (b for m in model.modules() for owner in _tensors_of(m)[1:] for b in owner.values())
    whole = all(b is None or (b.device.type == "cpu" and b.is_contiguous()) for b in buffers)
    fits = not any(width % VECTOR for width in widths)
    return plain and stacked and linear and not mapped and whole and fits


def _place_state(target: LayerArgs, layer: LayerState, end: int) -> bool:
    """Makes a layer's state writable and hands over where it lies; False for a foreign kind."""
    ring = layer.window.writable()
    if ring.dtype != layer.window.layout.dtype or not ring.is_contiguous():
        return False
    target.ring = ring.data_ptr()
    if layer.compressor is not None:
        _place_compressor(target.compressor, layer.compressor, end)
    if layer.indexer is not None:
        _place_compressor(target.indexer, layer.indexer, end)
    return True


def _place_compressor(target: CompressorArgs, part: OverlapState | DisjointState, end: int) -> None:
    part.entries.reserve(end // part.ratio)
    layout = part.entries.layout
    target.kind, target.page = KINDS[layout.kind], layout.page
    target.pending = part.pending.writable().data_ptr()
    target.entries = part.entries.data.data_ptr()
