"""The objectives against the original program's numbers and against their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from askance.heads.catalogue import HEADS, find
from askance.heads.entropy import entropy
from askance.heads.head import Batch, Setup
from askance.heads.ranking import ranking_loss
from askance.heads.squared import Squared

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "heads.npz")


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize("case", ["a", "ties", "predties"])
def test_ranking_loss_and_gradient_equal_the_original(case):
    uncertainty = tensor(f"lossorder.{case}.pred").requires_grad_()
    margin = float(GOLDEN[f"lossorder.{case}.gap"])
    loss = ranking_loss(uncertainty, tensor(f"lossorder.{case}.true"), margin)
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensor(f"lossorder.{case}.loss"), rtol=1e-6, atol=0)
    torch.testing.assert_close(uncertainty.grad, tensor(f"lossorder.{case}.grad_pred"))


def test_ranking_loss_of_classifier_losses_equals_the_original_with_frozen_classifier():
    logits, target = tensor("losspred.logits"), tensor("losspred.target")
    uncertainty = tensor("losspred.unc").requires_grad_()
    true = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(true, tensor("losspred.per_sample_ce_inv1"), rtol=1e-6, atol=0)
    loss = ranking_loss(uncertainty, true)
    loss.backward()
    golden = tensor("losspred.order_default_frozen.loss")
    torch.testing.assert_close(loss.detach(), golden, rtol=1e-6, atol=0)
    torch.testing.assert_close(uncertainty.grad, tensor("losspred.order_default_frozen.grad_unc"))


def test_squared_loss_equals_the_original_with_frozen_classifier():
    class Given(Squared):
        """Takes the "embedding" for its prediction."""

        def forward(self, embedding):
            return embedding[:, 0]

    head = Given(setup(dim=1))
    uncertainty = tensor("losspred.unc").requires_grad_()
    loss = head.objective(batch(uncertainty[:, None], tensor("losspred.per_sample_ce_inv1")))
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensor("losspred.l2_frozen.loss"), rtol=1e-6, atol=0)
    torch.testing.assert_close(uncertainty.grad, tensor("losspred.l2_frozen.grad_unc"))


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 9)), min_size=1, max_size=20).map(
        lambda x: x * 2
    ),
    st.floats(-5, 5),
)
def test_ranking_loss_is_unchanged_by_a_constant(pairs, shift):
    uncertainty, loss = torch.tensor(pairs, dtype=torch.float64).T.contiguous()
    torch.testing.assert_close(
        ranking_loss(uncertainty + shift, loss), ranking_loss(uncertainty, loss)
    )


def test_ranking_loss_is_zero_when_order_is_right_by_the_margin():
    loss = torch.tensor([3.0, 1.0, 0.5, 2.0])
    assert ranking_loss(loss, loss) == 0


def test_ranking_loss_of_a_constant_is_the_margin():
    torch.testing.assert_close(ranking_loss(torch.ones(8), torch.rand(8)), torch.tensor(0.1))


def test_ranking_loss_refuses_an_odd_batch():
    with pytest.raises(ValueError, match="expected an even batch, whose rows form pairs, got 3"):
        ranking_loss(torch.ones(3), torch.ones(3))


def batch(embedding: torch.Tensor, loss: torch.Tensor) -> Batch:
    return Batch(embedding, loss, torch.zeros(len(loss), dtype=torch.long))


def setup(dim: int, classes: int = 5, width: int = 5) -> Setup:
    torch.manual_seed(0)
    return Setup(dim, width, 2, torch.randn(classes, dim), torch.randn(classes))


def golden_head() -> torch.nn.Module:
    head = HEADS["ranking"](setup(dim=6)).double()
    names = ("w0", "b0", "w1", "b1", "w2", "b2")
    head.load_state_dict(
        {key: tensor(f"head.{name}") for key, name in zip(head.state_dict(), names, strict=True)}
    )
    return head


def test_mlp_equals_the_original():
    found = golden_head()(tensor("head.x")).detach()
    torch.testing.assert_close(found, tensor("head.unc"), rtol=1e-6, atol=0)


def test_mlp_of_zeros_predicts_ln_2_as_the_original():
    head = golden_head()
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    found = head(tensor("head.x")).detach()
    torch.testing.assert_close(found, tensor("head.unc_zeroinit"), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("dim", "parameters"), [(192, 361_985), (384, 460_289), (768, 656_897), (1024, 787_969)]
)
def test_head_has_the_papers_number_of_parameters(dim, parameters):
    head = HEADS["ranking"](setup(dim, width=512))
    assert sum(p.numel() for p in head.parameters()) == parameters


def test_gradient_never_reaches_the_embedding():
    embedding = torch.randn(4, 6, requires_grad=True)
    head = HEADS["ranking"](setup(dim=6))
    head.objective(batch(embedding, torch.rand(4))).backward()
    assert embedding.grad is None
    assert all(p.grad is not None for p in head.parameters())


def test_entropy_and_norm_equal_the_original():
    weight, bias, features = (tensor(f"uncmod.{n}") for n in ("W", "b", "features"))
    entropies = HEADS["entropy"](Setup(6, 1, 1, weight, bias))(features)
    torch.testing.assert_close(entropies, tensor("uncmod.class_entropy.unc"), rtol=1e-6, atol=0)
    norms = HEADS["norm"](Setup(6, 1, 1, weight, bias))(features)
    torch.testing.assert_close(norms, tensor("uncmod.embed_norm.unc"), rtol=1e-6, atol=0)


def test_entropy_of_extreme_logits_is_zero_and_of_equal_ones_ln_c():
    logits = torch.tensor([[1e4, 0.0, -1e4], [2.0, 2.0, 2.0]])
    torch.testing.assert_close(entropy(logits), torch.tensor([0.0, np.log(3)], dtype=torch.float32))


def test_maxprob_is_one_minus_the_largest_probability():
    maxprob = HEADS["maxprob"](Setup(2, 1, 1, torch.eye(2), torch.zeros(2)))
    found = maxprob(torch.tensor([[np.log(3.0), 0.0]], dtype=torch.float32))
    torch.testing.assert_close(found, torch.tensor([0.25]))


def test_unknown_head_names_those_that_exist():
    with pytest.raises(ValueError, match="expected a head among ranking, squared, .* got 'rankin'"):
        find("rankin")
