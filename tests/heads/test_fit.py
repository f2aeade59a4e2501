"""Schedule, optimiser and a whole short training against the original program's numbers."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from askance.heads.catalogue import HEADS
from askance.heads.fit import (
    EPOCHS,
    WARM_UP,
    WARM_UP_FROM,
    cosine,
    fit,
    optimiser,
    paper_schedule,
    peak_rate,
    shuffled,
)
from askance.heads.head import Setup

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "heads.npz")


def small_head(dim: int = 8, width: int = 16):
    return HEADS["ranking"](Setup(dim, width, 2, torch.zeros(2, dim), torch.zeros(2)))


def test_schedule_equals_the_papers_460_epochs():
    peak = peak_rate(0.001, 2048)
    assert peak == pytest.approx(float(GOLDEN["lr.pvu_base"]), rel=1e-12)
    found = [cosine(epoch, EPOCHS, WARM_UP, peak, WARM_UP_FROM) for epoch in range(EPOCHS)]
    np.testing.assert_allclose(found, GOLDEN["lr.pvu_460"], rtol=1e-9)


def test_schedule_squeezed_into_460_steps_is_the_papers():
    rate = paper_schedule(EPOCHS, peak_rate(0.001, 2048))
    np.testing.assert_allclose([rate(s) for s in range(EPOCHS)], GOLDEN["lr.pvu_460"], rtol=1e-9)


def test_biases_do_not_decay_and_come_first():
    groups = optimiser(small_head()).param_groups
    assert [len(g["params"]) for g in groups] == GOLDEN["traj.order_adamw.n_groups_sizes"].tolist()
    assert [g["weight_decay"] for g in groups] == GOLDEN["traj.order_adamw.group_wd"].tolist()


def test_training_follows_the_originals_trajectory():
    """44 batches of 8, accumulated by 4: the mean over 4 batches is one batch of 32 here.

    An epoch has 11 batches; the gradients of its last 3 are thrown away, as in the original.
    """
    golden = {n.removeprefix("traj.order_adamw."): GOLDEN[n] for n in GOLDEN.files if "traj" in n}
    head = small_head()
    names = [f"init_{name}" for name in ("w0", "b0", "w1", "b1", "w2", "b2")]
    keys = list(head.state_dict())
    head.load_state_dict(
        {key: torch.from_numpy(golden[name]) for key, name in zip(keys, names, strict=True)}
    )
    x, y = torch.from_numpy(golden["X"]), torch.from_numpy(golden["Y"])
    logits = x @ torch.from_numpy(golden["Wc"]).T + torch.from_numpy(golden["bc"])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    x, loss = (
        x.view(4, 11, 8, 8)[:, :8].reshape(8, 32, 8),
        loss.view(4, 11, 8)[:, :8].reshape(8, 32),
    )
    rates = np.repeat(golden["lrs"], 2)
    history = fit(head, zip(x, loss, strict=True), lambda step: float(rates[step]))
    theirs = golden["losses"].reshape(4, 11)[:, :8].reshape(8, 4).mean(axis=1)
    np.testing.assert_allclose(history, theirs, rtol=1e-4)
    for key, name in zip(keys, names, strict=True):
        final = torch.from_numpy(golden[name.replace("init", "final")])
        torch.testing.assert_close(head.state_dict()[key], final, rtol=1e-4, atol=1e-6)


def test_shuffled_batches_hold_every_row_once_before_any_twice():
    rows = torch.arange(10.0)
    batches = list(islice(shuffled(rows[:, None], rows, 5, 4, seed=0), 4))
    for epoch in (batches[:2], batches[2:]):
        seen = torch.cat([loss for _, loss in epoch])
        torch.testing.assert_close(seen.sort().values, rows)
    for embedding, loss in batches:
        torch.testing.assert_close(embedding[:, 0], loss)


def test_training_is_the_same_for_the_same_seed_and_another_for_another():
    embedding, loss = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.rand(64)

    def train(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return fit(small_head(), shuffled(embedding, loss, 16, 12, seed), paper_schedule(12, 1e-3))

    assert train(1) == train(1)
    assert train(1) != train(2)


def test_fewer_rows_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="expected at least train.batch=8 rows, got 4"):
        next(shuffled(torch.ones(4, 2), torch.ones(4), 8, 1, seed=0))


def test_head_learns_an_order_that_can_be_learnt():
    torch.manual_seed(0)
    embedding = torch.randn(512, 8)
    loss = embedding[:, 0].exp()
    head = small_head()
    history = fit(head, shuffled(embedding, loss, 64, 300, seed=0), paper_schedule(300, 3e-3))
    assert history[0] == pytest.approx(0.1, abs=0.02)
    assert np.mean(history[-20:]) < 0.02


def test_a_diverging_training_stops_with_its_step():
    loss = torch.full((8,), torch.nan)
    head = HEADS["squared"](Setup(8, 4, 1, torch.zeros(2, 8), torch.zeros(2)))
    with pytest.raises(ValueError, match="expected a finite objective, got nan at step 0"):
        fit(head, [(torch.ones(8, 8), loss)], lambda _: 1e-3)
