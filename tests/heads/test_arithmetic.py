"""The arithmetic of a training step: that of the head alone, whatever the number of classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from askance.heads.catalogue import find
from askance.heads.fit import Trainee, Training
from askance.heads.head import Batch, Setup

CLASSES = 999


def setup(dim: int, width: int, depth: int = 2) -> Setup:
    return Setup(dim, width, depth, torch.zeros(CLASSES, dim), torch.zeros(CLASSES))


def batch(rows: int, dim: int) -> Batch:
    return Batch(torch.randn(rows, dim), torch.rand(rows), torch.randint(CLASSES, (rows,)))


def flops_of_a_row(dim: int, width: int, depth: int = 2) -> int:
    """Count 2 for each weight forward, 2 for its gradient, and 2 for that of its input, if any.

    The embedding has no gradient, hence 4 for the first layer.
    """
    return 4 * dim * width + 6 * ((depth - 1) * width * width + width)


@settings(max_examples=30)
@given(
    pairs=st.integers(1, 8),
    dim=st.integers(1, 40),
    width=st.integers(1, 40),
    depth=st.integers(1, 3),
    name=st.sampled_from(["ranking", "squared"]),
    bfloat16=st.booleans(),
)
def test_a_step_is_the_products_of_the_head_and_no_logits(pairs, dim, width, depth, name, bfloat16):
    trainee = Trainee(find(name)(setup(dim, width, depth)), seed=0, bfloat16=bfloat16)
    rows = batch(2 * pairs, dim)
    with FlopCounterMode(display=False) as counter:
        trainee.step(rows, 0, 1e-3)
    assert counter.get_total_flops() == 2 * pairs * flops_of_a_row(dim, width, depth)


def test_the_papers_head_takes_three_million_a_row():
    trainee = Trainee(find("ranking")(setup(768, 512)), seed=0)
    with FlopCounterMode(display=False) as counter:
        trainee.step(batch(2, 768), 0, 1e-3)
    assert counter.get_total_flops() == 2 * 3_148_800


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_each_head_and_seed_adds_its_own_step_and_nothing_else(seeds):
    names = ["ranking", "squared"]
    training = Training(names, seeds, setup(8, 16), lambda _: 1e-3, bfloat16=False)
    with FlopCounterMode(display=False) as counter:
        training.step(batch(6, 8), None, (0,))
    assert counter.get_total_flops() == len(names) * len(seeds) * 6 * flops_of_a_row(8, 16)
