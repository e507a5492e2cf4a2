"""`baleen cost`: bytes of cache and operations per token of a model, without its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from baleen.errors import UsageError

if TYPE_CHECKING:
    from baleen.model.config import ModelConfig
    from baleen.model.cost import Flops, ReferenceModel

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SESSION_CONTEXTS = (128 << 10, 1 << 20)
PUBLISHED = {
    "v4-pro": {"v3.2 cache": 0.10, "v3.2 flops": 0.27, "gqa8 cache": 0.02},
    "v4-flash": {"v3.2 cache": 0.07, "v3.2 flops": 0.10, "gqa8 cache": 0.02},
}
"""At 1M tokens. Source: DeepSeek-V4 report, abstract and figure 1."""


def amount(text: str) -> int:
    """`131072`, `128K`, `1M`, `64G`, `64GiB`: units are powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?", text.strip(), re.IGNORECASE)
    value = round(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if value < 1:
        raise UsageError(f"{text!r} is no amount", remedy="write 131072, 128K, 1M or 64G")
    return value


@click.command()
@click.argument("model", metavar="PRESET|DIR")
@click.option("--context", default="1M", show_default=True, help="Tokens in the context.")
@click.option(
    "--kv", type=click.Choice(["fp8", "bf16", "fp32"]), default="fp8", show_default=True,
    help="How the cache is stored.",
)  # fmt: skip
@click.option(
    "--memory", default="64G", show_default=True, help="For caches, to say how many sessions fit."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cost(model: str, context: str, kv: str, memory: str, as_json: bool) -> None:
    """Say what a model's cache and a decoded token cost.

    PRESET is v4-pro, v4-flash, their -base forms, nano, or one of the models that V4 is compared
    with: v3.2, gqa8. DIR is a model folder.

    \b
    Examples:
      baleen cost v4-pro --context 1M
      baleen cost v4-flash --context 128K --memory 80G
      baleen cost ./my-model --kv bf16 --json
    """
    found = describe(model, amount(context), kv, amount(memory))
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for line in lines(found):
        click.echo(line)


def describe(model: str, context: int, kv: str, memory: int) -> dict[str, Any]:
    """All figures of one model.

    Raises:
        ConfigError: no preset and no folder has that name.
    """
    from baleen.model.config import ModelConfig
    from baleen.model.cost import V32, gqa8

    references = {"v3.2": V32, "gqa8": gqa8(V32.layers)}
    if model in references:
        return _reference(references[model], context, memory)
    is_folder = Path(model).is_dir() or "/" in model
    config = ModelConfig.from_hf(model) if is_folder else ModelConfig.preset(model)
    return _v4(model, config, context, kv, memory)


def _v4(model: str, config: ModelConfig, context: int, kv: str, memory: int) -> dict[str, Any]:
    from baleen.model.cost import V32, gqa8

    cache, flops = config.cache_bytes(context, kv), config.flops(context)
    published = PUBLISHED.get(model.removesuffix("-base"), {}) if context == 1 << 20 else {}
    peers = {"v3.2": V32, "gqa8": gqa8(config.num_hidden_layers)}
    ratios = {
        name: {
            "bytes": peer.cache_bytes(context),
            "ratio": cache.entries / peer.cache_bytes(context),
            "published": published.get(f"{name} cache") if kv == "fp8" else None,
        }
        for name, peer in peers.items()
    }
    return {
        "model": model,
        "context": context,
        "parameters": config.parameters()._asdict(),
        "cache": {
            "kind": kv,
            **cache._asdict(),
            "entries": cache.entries,
            "total": cache.total,
            "against": ratios,
        },
        "flops": {
            "parts": flops._asdict(),
            "total": flops.total,
            "rules": _rules(flops, context, published.get("v3.2 flops")),
        },
        "sessions": _sessions(memory, lambda n: config.cache_bytes(n, kv).total),
    }


def _rules(flops: Flops, context: int, published: float | None) -> dict[str, Any]:
    from baleen.model.cost import Rule, counted, v32_flops

    other = v32_flops(context)
    rules = {}
    for rule in Rule:
        ours, theirs = counted(flops, rule), counted(other, rule, is_v4=False)
        known = published if rule is Rule.EQUIVALENT_FP8 else None
        rules[rule.value] = {
            "flops": ours, "v3.2": theirs, "ratio": ours / theirs, "published": known
        }  # fmt: skip
    return rules


def _reference(reference: ReferenceModel, context: int, memory: int) -> dict[str, Any]:
    flops = reference.flops(context)
    counts = {"parts": flops._asdict(), "total": flops.total} if flops else None
    return {
        "model": reference.name,
        "context": context,
        "cache": {"total": reference.cache_bytes(context), "layers": reference.layers},
        "flops": counts,
        "sessions": _sessions(memory, reference.cache_bytes),
    }


def _sessions(memory: int, bytes_of: Any) -> dict[str, Any]:
    fits = {str(n): memory // bytes_of(n) for n in SESSION_CONTEXTS}
    return {"memory": memory, "fit": fits}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The table of what `describe` found."""
    yield f"{found['model']}, {found['context']:,} tokens"
    if "parameters" in found:
        total, active, draft = found["parameters"].values()
        yield f"parameters  {number(total)}, {number(active)} active" + (
            f", draft block {number(draft)}" if draft else ""
        )
    yield from _cache_lines(found["cache"])
    if found["flops"]:
        yield from _flop_lines(found["flops"])
    fits = ", ".join(
        f"{count:,} of {int(n) >> 10:,}K tokens" for n, count in found["sessions"]["fit"].items()
    )
    yield f"sessions    in {size(found['sessions']['memory'])} of cache: {fits}"


def _cache_lines(cache: dict[str, Any]) -> Iterator[str]:
    yield f"cache       {size(cache['total'])} per sequence" + (
        f", {cache['kind']}" if "kind" in cache else f", {cache['layers']} layers"
    )
    for part in ("window", "blocks", "indexer", "state"):
        if part in cache:
            yield f"  {part:24}{size(cache[part]):>12}"
    for name, against in cache.get("against", {}).items():
        ratio = f"{against['ratio']:8.2%}{_beside(against['published'])}"
        yield f"  of {name:21}{size(against['bytes']):>12}{ratio}"


def _flop_lines(flops: dict[str, Any]) -> Iterator[str]:
    unit, name = (1e9, "GFLOP") if flops["total"] >= 1e9 else (1e6, "MFLOP")
    yield f"operations  {flops['total'] / unit:,.2f} {name} per decoded token"
    for part, value in flops["parts"].items():
        if value:
            yield f"  {part.replace('_', ' '):24}{value / unit:>12,.2f}"
    for rule, row in flops.get("rules", {}).items():
        ratio = f"{row['ratio']:8.1%} of v3.2{_beside(row['published'])}"
        yield f"  {rule:28}{row['flops'] / unit:>8,.1f}{ratio}"


def _beside(published: float | None) -> str:
    return "" if published is None else f"  (published: {published:.0%})"


def number(count: int) -> str:
    """A count of parameters for people."""
    return f"{count / 1e9:,.2f} B" if count >= 1e8 else f"{count / 1e6:,.2f} M"


def size(num_bytes: int) -> str:
    """Bytes for people."""
    for unit, width in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= width:
            return f"{num_bytes / width:,.2f} {unit}"
    return f"{num_bytes} B"
