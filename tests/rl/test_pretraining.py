"""Gradients go where they belong, are those of the formulas in fp64, and repeat to the bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from baleen.model import Trace, Transformer
from baleen.model.rounding import rounded_weights
from baleen.rl.pretraining import PretrainingConfig, TextBatch, losses, new_optimizer, train_step

sys.path.insert(0, str(Path(__file__).parents[1] / "model" / "support"))

from naive import NaiveModel

Make = Callable[..., Transformer]
MTP, BALANCE = 0.3, 0.01


def whole(make_model: Make, seed: int = 0) -> Transformer:
    """Every kind of layer, and the MTP block; blocks are selected from the 33rd token on."""
    return make_model(
        seed,
        num_hidden_layers=4,
        compress_ratios=(0, 4, 16, 4, 0),
        num_hash_layers=1,
        num_nextn_predict_layers=1,
    )


def random_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def backward(model: Transformer, ids: torch.Tensor) -> None:
    found = losses(model, TextBatch.rows(ids), Trace(teaches_indexer=True))
    main = found["loss"] + MTP * found["mtp"] + BALANCE * found["balance"]
    (main + found["indexer_kl"]).backward()


def exact_losses(naive: NaiveModel, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What `backward` minimises, in fp64: the model's part and the indexer's."""
    given, targets = ids[:-1], torch.tensor(ids[1:])
    streams = naive.streams(given)
    lessons = torch.stack(naive.lessons).mean()
    balance = torch.stack(naive.balance)
    head = naive.w["head.weight"].T
    loss = F.cross_entropy(naive.read(streams, "") @ head, targets)
    # the last position is shown token 0, and asked for nothing
    drafted = F.cross_entropy(naive.drafted_logits([*given, 0])[:-1], targets[1:])
    return loss + MTP * drafted + BALANCE * (balance.sum() + naive.balance[-1]), lessons


def test_every_parameter_gets_a_gradient(make_model: Make) -> None:
    model = whole(make_model)
    backward(model, random_ids(2, 90))
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().max())
    ]
    assert not without
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"{at}.ffn.gate.bias" for at in ("layers.1", "layers.2", "layers.3", "mtp.0")}


def test_gradients_are_those_of_the_formulas_in_fp64(make_model: Make) -> None:
    model = whole(make_model, 3)
    ids = random_ids(1, 48, 3)
    backward(model, ids)
    naive = NaiveModel(model)
    leaves = {
        n: naive.w[n].requires_grad_() for n, p in model.named_parameters() if p.requires_grad
    }
    main, lesson = exact_losses(naive, ids[0].tolist())
    (main + lesson).backward()
    for name, leaf in leaves.items():
        ours = dict(model.named_parameters())[name].grad
        assert (ours - leaf.grad).abs().max() <= 2e-4 * leaf.grad.abs().max(), name


@pytest.mark.parametrize("part", ["model", "indexer"])
def test_gradients_are_the_slope_of_the_loss(make_model: Make, part: str) -> None:
    """Autograd left out: the loss in fp64 a little to either side of the weights."""
    model = whole(make_model, 4)
    ids = random_ids(1, 48, 4)
    backward(model, ids)
    moved = {
        name: parameter.grad.double()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (".indexer." in name) == (part == "indexer")
    }
    generator = torch.Generator().manual_seed(5)
    step = 1e-6
    for _ in range(2):
        slope, values = 0.0, []
        directions = {
            name: torch.randn(grad.shape, generator=generator, dtype=torch.float64)
            for name, grad in moved.items()
        }
        slope = sum(float((directions[name] * grad).sum()) for name, grad in moved.items())
        for sign in (1, -1):
            naive = NaiveModel(model)
            for name, direction in directions.items():
                naive.w[name] = naive.w[name] + sign * step * direction
            values.append(float(exact_losses(naive, ids[0].tolist())[part == "indexer"]))
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-3, abs=1e-4)


@pytest.fixture
def _only_deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_only_deterministic")
def test_equal_seeds_give_equal_bits(make_model: Make) -> None:
    config = PretrainingConfig(steps=3, warmup_steps=1)
    runs = []
    for _ in range(2):
        model = whole(make_model, 6).train()
        optimizer = new_optimizer(model, config)
        for step in range(config.steps):
            train_step(model, optimizer, TextBatch.rows(random_ids(2, 40, step)), config, step)
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_step_lowers_the_loss_and_moves_the_biases(make_model: Make) -> None:
    config = PretrainingConfig(steps=12, warmup_steps=1, lr_matrix=0.02, lr_other=0.01)
    model = whole(make_model, 7)
    before = model.layers[1].ffn.gate.bias.clone()
    optimizer = new_optimizer(model, config)
    batch = TextBatch.rows(random_ids(2, 40))
    curve = [train_step(model, optimizer, batch, config, step) for step in range(config.steps)]
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.5
    assert curve[-1]["mtp"] < curve[0]["mtp"] - 0.5
    assert not torch.equal(before, model.layers[1].ffn.gate.bias)


def test_rates_rise_stay_and_fall_and_drafts_weigh_less_at_the_end() -> None:
    config = PretrainingConfig(steps=100, warmup_steps=10, decay_share=0.4, final_lr=0.1)
    factors = [config.lr_factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert set(factors[9:60]) == {1.0}
    assert factors[60:] == sorted(factors[60:], reverse=True)
    assert factors[-1] == pytest.approx(0.1, abs=0.01)
    assert [config.mtp_weight(step) for step in (0, 59, 60, 99)] == [0.3, 0.3, 0.1, 0.1]


def test_packed_gradients_are_those_of_each_document_alone(make_model: Make) -> None:
    """Every loss is a mean over its own positions, so documents are weighed by what they have."""
    model = whole(make_model, 8)
    texts = [random_ids(1, n, n)[0].tolist() for n in (40, 23, 35, 4)]

    def sums(documents: list[list[int]]) -> torch.Tensor:
        found = losses(model, TextBatch.packed(documents), Trace(teaches_indexer=True))
        csa_layers, lengths = 2, [len(document) for document in documents]
        counts = {
            "loss": sum(n - 1 for n in lengths),
            "mtp": sum(n - 2 for n in lengths),
            "indexer_kl": csa_layers * sum(n - 3 for n in lengths),
            "balance": len(lengths),
        }
        return torch.stack([found[name] * count for name, count in counts.items()]).sum()

    sums(texts).backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    for text in texts:
        sums([text]).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max().clamp(min=1e-4)
            assert (ours[name] - parameter.grad).abs().max() <= 2e-4 * scale, name


def test_training_for_fp4_minimises_the_loss_of_what_a_file_holds(make_model: Make) -> None:
    batch = TextBatch.rows(random_ids(2, 40))
    config = PretrainingConfig(
        steps=10, warmup_steps=1, lr_matrix=0.02, lr_other=0.01, weight_format="fp4"
    )
    model = whole(make_model, 7)

    def loss_of_the_file() -> float:
        with rounded_weights(model, "fp4"), torch.no_grad():
            return losses(model, batch, Trace(teaches_indexer=True))["loss"].item()

    optimizer = new_optimizer(model, config)
    curve = [loss_of_the_file()]
    for step in range(config.steps):
        metrics = train_step(model, optimizer, batch, config, step)
        assert metrics["loss"] == pytest.approx(curve[-1], rel=1e-4)
        curve.append(loss_of_the_file())
    assert curve[-1] < curve[0] - 2
