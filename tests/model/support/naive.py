"""The model once more, in fp64 and one query at a time, written from the formulas alone.

Slow on purpose: no caches, no batches, no fused kernels, no code of the package. Gradients come
from autograd on these few operations or from finite differences, so that the package's own
gradients have something to be measured against.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WEIGHTS = dict[str, Tensor]


def rms(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class NaiveModel:
    """Weights of a `Transformer` as fp64 leaves, and its forward pass for one document."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.config = model.config
        self.w: WEIGHTS = {
            name: tensor.detach().double() if tensor.is_floating_point() else tensor
            for name, tensor in model.state_dict().items()
        }
        self.lessons: list[Tensor] = []
        """Per CSA layer and query with a visible block: KL(attention || indexer)."""
        self.balance: list[Tensor] = []
        """Per score-routed layer: sum_i f_i P_i."""

    def logits(self, ids: list[int]) -> Tensor:
        return self.read(self.streams(ids), "") @ self.w["head.weight"].T

    def streams(self, ids: list[int]) -> Tensor:
        self.lessons, self.balance = [], []
        embedded = self.w["embed.weight"][ids]
        x = embedded.unsqueeze(1).repeat(1, self.config.hc_mult, 1)
        for layer in range(self.config.num_hidden_layers):
            ratio = self.config.compress_ratios[layer]
            x = self.block(f"layers.{layer}.", x, ids, ratio, layer < self.config.num_hash_layers)
        return x

    def drafted_logits(self, ids: list[int]) -> Tensor:
        """Logits of token t + 2 for t = 0 .. T - 2."""
        x = self.streams(ids)[:-1]
        c, w = self.config, self.w
        e = rms(w["embed.weight"][ids[1:]], c.rms_norm_eps) * w["mtp.0.enorm.weight"]
        h = rms(x, c.rms_norm_eps) * w["mtp.0.hnorm.weight"]
        x = (e @ w["mtp.0.e_proj.weight"].T).unsqueeze(1) + h @ w["mtp.0.h_proj.weight"].T
        x = self.block("mtp.0.", x, ids[1:], 0, False)
        return self.read(x, "mtp.0.") @ w["head.weight"].T

    def read(self, x: Tensor, prefix: str) -> Tensor:
        """Head mixer and final norm."""
        m = self.mixes(f"{prefix}hc_head.", x)
        scale, base = self.w[f"{prefix}hc_head.scale"], self.w[f"{prefix}hc_head.base"]
        pre = torch.sigmoid(m * scale + base) + self.config.hc_eps
        u = (pre.unsqueeze(-1) * x).sum(1)
        return rms(u, self.config.rms_norm_eps) * self.w[f"{prefix}norm.weight"]

    def mixes(self, prefix: str, x: Tensor) -> Tensor:
        return rms(x.flatten(1), self.config.rms_norm_eps) @ self.w[f"{prefix}fn"].T

    def block(self, prefix: str, x: Tensor, ids: list[int], ratio: int, hashed: bool) -> Tensor:
        x = self.site(
            f"{prefix}hc_attn.", x, f"{prefix}attn_norm", lambda u: self.attend(prefix, u, ratio)
        )
        return self.site(
            f"{prefix}hc_ffn.", x, f"{prefix}ffn_norm", lambda u: self.feed(prefix, u, ids, hashed)
        )

    def site(self, prefix: str, x: Tensor, norm: str, inner: object) -> Tensor:
        n, eps = self.config.hc_mult, self.config.hc_eps
        scale, base = self.w[f"{prefix}scale"], self.w[f"{prefix}base"]
        m = self.mixes(prefix, x)
        pre = torch.sigmoid(m[:, :n] * scale[0] + base[:n]) + eps
        post = 2 * torch.sigmoid(m[:, n : 2 * n] * scale[1] + base[n : 2 * n])
        comb = (m[:, 2 * n :] * scale[2] + base[2 * n :]).reshape(-1, n, n).softmax(2) + eps
        comb = comb / (comb.sum(1, keepdim=True) + eps)
        for _ in range(self.config.hc_sinkhorn_iters - 1):
            comb = comb / (comb.sum(2, keepdim=True) + eps)
            comb = comb / (comb.sum(1, keepdim=True) + eps)
        u = (pre.unsqueeze(-1) * x).sum(1)
        y = inner(rms(u, self.config.rms_norm_eps) * self.w[f"{norm}.weight"])
        return post.unsqueeze(-1) * y.unsqueeze(1) + torch.einsum("tjk,tjd->tkd", comb, x)

    def feed(self, prefix: str, u: Tensor, ids: list[int], hashed: bool) -> Tensor:
        c, w = self.config, self.w
        scores = torch.log1p(torch.exp(u @ w[f"{prefix}ffn.gate.weight"].T)).sqrt()
        rows, counts = [], torch.zeros(c.n_routed_experts, dtype=torch.float64)
        for t, token in enumerate(ids):
            if hashed:
                experts = w[f"{prefix}ffn.gate.tid2eid"][token].tolist()
            else:
                biased = (scores[t].detach() + w[f"{prefix}ffn.gate.bias"]).tolist()
                experts = sorted(range(len(biased)), key=lambda e: (-biased[e], e))
                experts = experts[: c.num_experts_per_tok]
            counts[experts] += 1
            total = sum(scores[t, e] for e in experts)
            out = self.expert(f"{prefix}ffn.shared_experts.", u[t], None)
            for e in experts:
                share = scores[t, e] / total * c.routed_scaling_factor
                out = out + self.expert(f"{prefix}ffn.experts.", u[t], e) * share
            rows.append(out)
        if not hashed:
            f = c.n_routed_experts / (c.num_experts_per_tok * len(ids)) * counts
            self.balance.append((f * (scores / scores.sum(-1, keepdim=True)).mean(0)).sum())
        return torch.stack(rows)

    def expert(self, prefix: str, u: Tensor, number: int | None) -> Tensor:
        w1, w2, w3 = (
            self.w[f"{prefix}{leaf}.weight"]
            if number is None
            else self.w[f"{prefix}{leaf}"][number]
            for leaf in ("w1", "w2", "w3")
        )
        limit = self.config.swiglu_limit
        return w2 @ (silu((w1 @ u).clamp(max=limit)) * (w3 @ u).clamp(-limit, limit))

    def frequencies(self, ratio: int) -> Tensor:
        c = self.config
        theta = c.rope_theta if ratio == 0 else c.compress_rope_theta
        scaling = None if ratio == 0 else c.rope_scaling
        width, result = c.qk_rope_head_dim, []
        for i in range(width // 2):
            f = theta ** (-2 * i / width)
            if scaling is not None:

                def dim(n: float, scaling: object = scaling) -> float:
                    length = scaling.original_max_position_embeddings
                    return width * math.log(length / (2 * math.pi * n)) / (2 * math.log(theta))

                low = max(math.floor(dim(scaling.beta_fast)), 0)
                high = min(math.ceil(dim(scaling.beta_slow)), width - 1)
                ramp = min(max((i - low) / max(high - low, 0.001), 0), 1)
                f = f / scaling.factor * ramp + f * (1 - ramp)
            result.append(f)
        return torch.tensor(result, dtype=torch.float64)

    def rotate(self, x: Tensor, position: int, f: Tensor) -> Tensor:
        """Turns the last dims of [..., D] by a position."""
        r = 2 * len(f)
        cos, sin = torch.cos(position * f), torch.sin(position * f)
        even, odd = x[..., -r::2], x[..., -r + 1 :: 2]
        pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        return torch.cat([x[..., :-r], pairs.flatten(-2)], dim=-1)

    def compress(self, prefix: str, u: Tensor, m: int, f: Tensor) -> list[Tensor]:
        w = self.w
        content = u @ w[f"{prefix}wkv.weight"].T
        gate = u @ w[f"{prefix}wgate.weight"].T
        gate = gate + w[f"{prefix}ape"][torch.arange(len(u)) % m]
        width = len(w[f"{prefix}norm.weight"])
        blocks = []
        for i in range(len(u) // m):
            if m == 4:
                own = [(content[j, width:], gate[j, width:]) for j in range(4 * i, 4 * i + 4)]
                back = range(4 * i - 4, 4 * i) if i else ()
                items = own + [(content[j, :width], gate[j, :width]) for j in back]
            else:
                items = [(content[j], gate[j]) for j in range(m * i, m * i + m)]
            weights = torch.stack([z for _, z in items]).softmax(0)
            pooled = (weights * torch.stack([k for k, _ in items])).sum(0)
            normed = rms(pooled, self.config.rms_norm_eps) * w[f"{prefix}norm.weight"]
            blocks.append(self.rotate(normed, m * i, f))
        return blocks

    def attend(self, prefix: str, u: Tensor, ratio: int) -> Tensor:
        c, w, a = self.config, self.w, f"{prefix}attn."
        f, heads = self.frequencies(ratio), c.num_attention_heads
        qr = rms(u @ w[f"{a}wq_a.weight"].T, c.rms_norm_eps) * w[f"{a}q_norm.weight"]
        q = rms((qr @ w[f"{a}wq_b.weight"].T).reshape(len(u), heads, -1), c.rms_norm_eps)
        kv = rms(u @ w[f"{a}wkv.weight"].T, c.rms_norm_eps) * w[f"{a}kv_norm.weight"]
        kv = [self.rotate(row, t, f) for t, row in enumerate(kv)]
        blocks = self.compress(f"{a}compressor.", u, ratio, f) if ratio else []
        lesson = self.lesson(f"{a}indexer.", u.detach(), qr.detach(), f) if ratio == 4 else None
        sink, out = w[f"{a}attn_sink"], []
        for t in range(len(u)):
            near = list(range(max(0, t - c.sliding_window + 1), t + 1))
            seen = list(range((t + 1) // ratio)) if ratio else []
            scores = None
            if lesson is not None and seen:
                scores = lesson(t, seen)
                order = sorted(seen, key=lambda i: (-float(scores[i].detach()), i))
                seen = sorted(order[: c.index_topk])
            keys = torch.stack([kv[s] for s in near] + [blocks[i] for i in seen])
            z = self.rotate(q[t], t, f) @ keys.T / math.sqrt(c.head_dim)
            p = torch.cat([z, sink.unsqueeze(1)], dim=1).softmax(1)[:, :-1]
            if scores is not None:
                target = p[:, len(near) :].detach().sum(0)
                target = target / target.sum()
                guess = scores[seen].log_softmax(0)
                self.lessons.append((target * (target.log() - guess)).sum())
            out.append(self.rotate(p @ keys, -t, f))
        o = torch.stack(out).reshape(len(u), c.o_groups, -1)
        wo_a = w[f"{a}wo_a.weight"].reshape(c.o_groups, c.o_lora_rank, -1)
        low = torch.einsum("tgw,grw->tgr", o, wo_a).flatten(1)
        return low @ w[f"{a}wo_b.weight"].T

    def lesson(self, a: str, u: Tensor, qr: Tensor, f: Tensor) -> object:
        """score(t, blocks) -> fp64 [number of blocks]."""
        c, w = self.config, self.w
        keys = self.compress(f"{a}compressor.", u, 4, f)
        q = (qr @ w[f"{a}wq_b.weight"].T).reshape(len(u), c.index_n_heads, -1)
        weights = u @ w[f"{a}weights_proj.weight"].T
        weights = weights * (c.index_head_dim * c.index_n_heads) ** -0.5

        def score(t: int, blocks: list[int]) -> Tensor:
            k = torch.stack([keys[i] for i in blocks])
            return weights[t] @ (self.rotate(q[t], t, f) @ k.T).relu()

        return score
