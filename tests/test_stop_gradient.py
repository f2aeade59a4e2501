"""The stop-gradient: what trains the backbone, what trains the head alone, and what is frozen."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

import askance
from askance.features.backbone import load_backbone
from askance.heads.catalogue import HEADS
from askance.heads.checkpoint import SavedHead
from askance.heads.head import Setup
from askance.heads.ranking import ranking_loss

SIDE, CLASSES = 32, 3
PAGE = Path(__file__).parents[1] / "docs" / "stopgradient.md"
LOSSES = {"ranking": ranking_loss, "squared": mse_loss}


@pytest.fixture(scope="module")
def make(checkpoint):
    """Return a function that builds a model: a fresh head by name on a tiny network."""
    options = {"test_vit": {"img_size": SIDE}, "test_resnet": {}}
    weights = {name: str(checkpoint(name, **some)) for name, some in options.items()}

    def make(head="ranking", network="test_vit"):
        backbone = load_backbone(network, weights[network], SIDE, "own", "float32")
        torch.manual_seed(1)
        classifier = torch.randn(CLASSES, backbone.width) / 10, torch.zeros(CLASSES)
        setup = Setup(backbone.width, 16, 2, *classifier)
        card = {"backbone": network, "weights": backbone.weights_hash()}
        scale = np.full(1001, np.nan)
        saved = SavedHead(head, 0, HEADS[head](setup), scale, setup.sizes, card, {}, classifier)
        return askance.Model(backbone, saved)

    return make


@pytest.fixture(scope="module")
def batches():
    draw = torch.Generator().manual_seed(3)
    return [
        (
            torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8, generator=draw),
            torch.randint(0, CLASSES, (8,), generator=draw),
        )
        for _ in range(3)
    ]


def losses(model, pixels, label):
    """Return the task's loss of each image, and the uncertainty's."""
    embedding, uncertainty = model(pixels)
    loss = cross_entropy(model.classifier(embedding), label, reduction="none")
    return loss, LOSSES[model.saved.name](uncertainty, loss.detach())


def trained(model, batches, share):
    """Take steps on the task's loss plus `share` of the uncertainty's; return all gradients."""
    optimiser, gradients = torch.optim.AdamW(model.train_backbone().parameters(), 0.01), []
    for batch in batches:
        task, unsure = losses(model, *batch)
        optimiser.zero_grad()
        (task.mean() + share * unsure).backward()
        gradients += [p.grad for p in (*model.backbone.parameters(), *model.probe.parameters())]
        optimiser.step()
    return gradients


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("network", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("head", LOSSES)
def test_the_uncertainty_changes_no_bit_of_the_backbones_training(make, batches, head, network):
    alone, joint = make(head, network), make(head, network)
    for one, other in zip(trained(alone, batches, 0), trained(joint, batches, 1), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert same(state(alone.backbone), state(joint.backbone))
    assert same(state(alone.probe), state(joint.probe))
    assert not same(state(joint.backbone), state(make(head, network).backbone))
    assert not same(state(joint.head), state(alone.head))


@pytest.mark.parametrize("head", LOSSES)
def test_the_uncertaintys_loss_reaches_the_head_alone(make, batches, head):
    model = make(head).train_backbone()
    losses(model, *batches[0])[1].backward()
    reached = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"head"}
    assert all(p.grad.abs().sum() > 0 for p in model.head.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_no_heads_uncertainty_leads_back_to_the_backbone(make, batches, head):
    model = make(head).train_backbone()
    embedding, uncertainty = model(batches[0][0])
    assert embedding.requires_grad
    if uncertainty.requires_grad:
        weights = list(model.backbone.parameters())
        found = torch.autograd.grad(uncertainty.sum(), weights, allow_unused=True)
        assert all(gradient is None for gradient in found)


def test_a_frozen_model_learns_nothing_in_training_mode(make, batches):
    model = make(network="test_resnet")
    before = state(model.backbone)
    model.train()(batches[0][0])
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.backbone.modules())
    assert model.head.training
    assert same(state(model.backbone), before)


def test_an_unfrozen_model_trains_its_batch_norm_until_it_is_evaluated(make, batches):
    model = make(network="test_resnet").train_backbone()
    assert all(p.requires_grad for p in model.parameters())
    before = state(model.backbone)
    model(batches[0][0])
    after = state(model.backbone)
    moved = {
        name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])
    }
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}
    model.eval()(batches[0][0])
    assert same(state(model.backbone), after)


@pytest.mark.parametrize("learn", ["a step", "statistics"])
def test_a_backbone_that_has_learnt_is_not_released(make, batches, tmp_path, learn):
    model = make(network="test_resnet")
    if learn == "a step":
        trained(model, batches[:1], 1)
    else:
        model.train_backbone()(batches[0][0])
    with pytest.raises(
        ValueError, match="weights of test_resnet that the head was trained on, got"
    ):
        model.save_pretrained(tmp_path / "released")
    assert not [*tmp_path.rglob("*.safetensors")]


def test_the_loop_of_the_page_trains_both(make, encode, monkeypatch, tmp_path):
    for number, name in enumerate(("photo.jpg", "another.jpg")):
        (tmp_path / name).write_bytes(encode(number, "jpg"))
    monkeypatch.chdir(tmp_path)
    model = make()
    before = state(model.backbone), state(model.head)
    monkeypatch.setattr(askance, "load", lambda _: model, raising=False)
    (loop,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    exec(loop, names)
    assert names["loss"].isfinite().all()
    assert not same(state(model.backbone), before[0])
    assert not same(state(model.head), before[1])
