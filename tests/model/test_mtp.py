"""The MTP block: its formulas, its tensors in files, and its drafts in pieces."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baleen.errors import CheckpointError, ConfigError, UsageError
from baleen.model import Transformer
from baleen.model.mtp import draft, new_draft_state

sys.path.insert(0, str(Path(__file__).parent / "support"))

from naive import NaiveModel

Make = Callable[..., Transformer]


def drafting(make_model: Make, seed: int = 0, **fields: object) -> Transformer:
    shape = {"num_hidden_layers": 3, "compress_ratios": (0, 4, 16, 0), "num_hash_layers": 1}
    return make_model(seed, **{**shape, "num_nextn_predict_layers": 1, **fields})


def random_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def test_drafts_equal_the_formulas_in_fp64(make_model: Make) -> None:
    model = drafting(make_model)
    ids = random_ids(1, 50)
    made = draft(model, model.streams(ids)[:, :-1], ids[:, 1:])
    exact = NaiveModel(model).drafted_logits(ids[0].tolist())
    ours = model.logits(made.hidden_BTd)[0]
    assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


@torch.no_grad()
def test_the_block_changes_nothing_of_the_model_itself(make_model: Make) -> None:
    model = drafting(make_model)
    ids = random_ids(1, 40)
    before = model(ids)
    assert torch.equal(before, model.without_mtp()(ids))


@pytest.mark.parametrize("cuts", [[1] * 30, [7, 20, 3], [29, 1]])
@torch.no_grad()
def test_drafts_in_pieces_equal_drafts_in_one(make_model: Make, cuts: list[int]) -> None:
    model = drafting(make_model, 1)
    ids = random_ids(2, 31)
    streams, following = model.streams(ids)[:, :-1], ids[:, 1:]
    whole = draft(model, streams, following).hidden_BTd
    state, parts = new_draft_state(model, 2), []
    for piece, token in zip(streams.split(cuts, 1), following.split(cuts, 1), strict=True):
        parts.append(draft(model, piece, token, state).hidden_BTd)
    assert (torch.cat(parts, 1) - whole).abs().max() <= 1e-5 * whole.abs().max()


@torch.no_grad()
def test_a_draft_needs_no_more_past_than_its_window(make_model: Make) -> None:
    model = drafting(make_model, 2)
    ids = random_ids(1, 90)
    streams, following = model.streams(ids)[:, :-1], ids[:, 1:]
    whole = draft(model, streams, following).hidden_BTd[:, -1]
    window = model.config.sliding_window
    late = draft(model, streams[:, -window:], following[:, -window:]).hidden_BTd[:, -1]
    assert (whole - late).abs().max() <= 1e-5 * whole.abs().max()


def test_files_carry_the_released_names_and_come_back_exact(
    make_model: Make, tmp_path: Path
) -> None:
    model = drafting(make_model)
    model.save_pretrained(tmp_path, format="fp32")
    names = set(load_file(tmp_path / "model.safetensors"))
    for name in (
        "mtp.0.e_proj.weight", "mtp.0.h_proj.weight", "mtp.0.enorm.weight", "mtp.0.hnorm.weight",
        "mtp.0.norm.weight", "mtp.0.hc_head_fn", "mtp.0.hc_head_base", "mtp.0.hc_head_scale",
        "mtp.0.hc_attn_fn", "mtp.0.attn_norm.weight", "mtp.0.attn.wq_a.weight",
        "mtp.0.attn.attn_sink", "mtp.0.ffn.gate.bias", "mtp.0.ffn.experts.7.w2.weight",
    ):  # fmt: skip
        assert name in names
    assert not [name for name in names if name.startswith(("mtp.0.embed", "mtp.0.head"))]
    loaded = Transformer.from_pretrained(tmp_path)
    assert all(torch.equal(a, loaded.state_dict()[n]) for n, a in model.state_dict().items())


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_copies_of_embedding_and_head_are_skipped(make_model: Make, tmp_path: Path) -> None:
    model = drafting(make_model)
    model.save_pretrained(tmp_path, format="fp32")
    copies = {"mtp.0.embed.weight": torch.zeros(2), "mtp.0.head.weight": torch.zeros(2)}
    rewrite(tmp_path, lambda tensors: tensors.update(copies))
    assert len(Transformer.from_pretrained(tmp_path).mtp) == 1


def test_a_folder_without_the_block_loads_without_it(make_model: Make, tmp_path: Path) -> None:
    model = drafting(make_model)
    model.save_pretrained(tmp_path, format="fp32")
    rewrite(tmp_path, lambda tensors: [tensors.pop(n) for n in [*tensors] if "mtp" in n])
    loaded = Transformer.from_pretrained(tmp_path)
    assert loaded.config.num_nextn_predict_layers == 0
    with pytest.raises(UsageError, match="no MTP block"):
        draft(loaded, torch.zeros(1, 1, 4, 64), random_ids(1, 1))


def test_another_kind_of_draft_head_is_left_out_with_a_warning(
    make_model: Make, tmp_path: Path
) -> None:
    drafting(make_model).save_pretrained(tmp_path, format="fp32")
    rewrite(tmp_path, lambda tensors: tensors.update({"mtp.1.main_proj.weight": torch.zeros(2)}))
    with pytest.warns(UserWarning, match="no MTP block"):
        loaded = Transformer.from_pretrained(tmp_path)
    assert not loaded.mtp


def test_a_block_with_a_hole_is_refused_by_name(make_model: Make, tmp_path: Path) -> None:
    drafting(make_model).save_pretrained(tmp_path, format="fp32")
    rewrite(tmp_path, lambda tensors: tensors.pop("mtp.0.hnorm.weight"))
    with pytest.raises(CheckpointError, match=r"mtp\.0\.hnorm\.weight"):
        Transformer.from_pretrained(tmp_path)


def test_a_block_with_a_ratio_is_refused(make_model: Make) -> None:
    with pytest.raises(ConfigError, match=r"compress_ratios\[3\] = 4"):
        drafting(make_model, compress_ratios=(0, 4, 16, 4))
