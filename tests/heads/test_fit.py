"""Schedule, optimiser and a whole short training against the original program's numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from askance.heads.catalogue import HEADS
from askance.heads.fit import (
    EPOCHS,
    WARM_UP,
    WARM_UP_FROM,
    Trainee,
    Training,
    cosine,
    optimiser,
    paper_schedule,
    peak_rate,
)
from askance.heads.head import Batch, Head, Setup
from askance.heads.resume import State

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "heads.npz")


SETUP = Setup(8, 16, 2, torch.zeros(2, 8), torch.zeros(2))


def small_head():
    return HEADS["ranking"](SETUP)


def batches(count: int, rows: int = 32, seed: int = 0) -> list[Batch]:
    """Draw batches whose loss is exp of the embedding's first number."""
    random = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(rows, 8, generator=random) for _ in range(count)]
    return [Batch(x, x[:, 0].exp(), torch.zeros(rows, dtype=torch.long)) for x in drawn]


def training(names=("ranking",), seeds=(0,), steps=40, lr=3e-3, bfloat16=False) -> Training:
    return Training(names, seeds, SETUP, paper_schedule(steps, lr), bfloat16=bfloat16)


def weights(head: Head) -> torch.Tensor:
    return torch.cat([value.flatten() for value in head.state_dict().values()])


def by_spread(head: Head) -> float:
    """Score a head by how much its answers differ."""
    return float(head.uncertainty(batches(1, seed=9)[0].embedding).std())


def test_schedule_equals_the_papers_460_epochs():
    peak = peak_rate(0.001, 2048)
    assert peak == pytest.approx(float(GOLDEN["lr.pvu_base"]), rel=1e-12)
    found = [cosine(epoch, EPOCHS, WARM_UP, peak, WARM_UP_FROM) for epoch in range(EPOCHS)]
    np.testing.assert_allclose(found, GOLDEN["lr.pvu_460"], rtol=1e-9)


def test_schedule_squeezed_into_460_steps_is_the_papers():
    rate = paper_schedule(EPOCHS, peak_rate(0.001, 2048))
    np.testing.assert_allclose([rate(s) for s in range(EPOCHS)], GOLDEN["lr.pvu_460"], rtol=1e-9)


@pytest.mark.parametrize("peak", [1e-3, 1e-6])
def test_the_warm_up_never_falls_and_never_exceeds_the_peak(peak):
    rates = [paper_schedule(EPOCHS, peak)(step) for step in range(EPOCHS)]
    assert rates[: int(WARM_UP)] == sorted(rates[: int(WARM_UP)])
    assert max(rates) <= peak


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
    trainee, column = Trainee(head, seed=0), torch.zeros(32, dtype=torch.long)
    history = [
        trainee.step(Batch(x[i], loss[i], column), i, float(rate)).item()
        for i, rate in enumerate(rates)
    ]
    theirs = golden["losses"].reshape(4, 11)[:, :8].reshape(8, 4).mean(axis=1)
    np.testing.assert_allclose(history, theirs, rtol=1e-4)
    for key, name in zip(keys, names, strict=True):
        final = torch.from_numpy(golden[name.replace("init", "final")])
        torch.testing.assert_close(head.state_dict()[key], final, rtol=1e-4, atol=1e-6)


def test_training_is_the_same_for_the_same_seed_whatever_else_is_trained():
    alone, among = training(seeds=[1]), training(["squared", "ranking"], seeds=[0, 1])
    for batch in batches(12):
        alone.step(batch, None, (0,))
        among.step(batch, None, (0,))
    torch.testing.assert_close(
        weights(among.head("ranking", 1)), weights(alone.head("ranking", 1)), rtol=0, atol=0
    )
    assert not torch.equal(weights(among.head("ranking", 0)), weights(among.head("ranking", 1)))


class Draw(Head):
    """A head whose objective is a random number."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def objective(self, batch: Batch) -> torch.Tensor:
        return self.weight + torch.rand(())


def test_what_a_step_draws_depends_on_its_seed_and_number_alone():
    def drawn(seed: int, numbers: range) -> list[float]:
        trainee = Trainee(Draw(SETUP), seed)
        return [trainee.step(batches(1)[0], number, 0.0).item() for number in numbers]

    first = drawn(0, range(5))
    assert len({*first, *drawn(1, range(5))}) == 10
    assert drawn(0, range(3, 5)) == first[3:]


def test_head_learns_an_order_that_can_be_learnt():
    run = training(steps=300)
    means = []
    for number, batch in enumerate(batches(300, rows=64)):
        run.step(batch, None, (0,))
        if number in (0, 279, 299):
            means.append(run.objectives()["ranking"])
    assert means[0] == pytest.approx(0.1, abs=0.02)
    assert means[-1] < 0.02


def test_bfloat16_learns_the_same_up_to_its_rounding():
    exact, rounded = training(), training(bfloat16=True)
    for batch in batches(40):
        exact.step(batch, None, (0,))
        rounded.step(batch, None, (0,))
    assert rounded.objectives()["ranking"] == pytest.approx(exact.objectives()["ranking"], rel=0.05)
    assert {p.dtype for p in rounded.head("ranking", 0).parameters()} == {torch.float32}
    assert not torch.equal(weights(rounded.head("ranking", 0)), weights(exact.head("ranking", 0)))


def test_a_head_that_does_not_bear_bfloat16_is_trained_in_float32():
    exact, rounded = (training(["elk"], bfloat16=wanted) for wanted in (False, True))
    for batch in batches(3):
        exact.step(batch, None, (0,))
        rounded.step(batch, None, (0,))
    assert torch.equal(weights(rounded.head("elk", 0)), weights(exact.head("elk", 0)))


def test_an_objective_that_is_not_finite_stops_with_head_seed_step_and_blocks():
    run = training(["ranking", "squared"], seeds=[0, 7])
    run.step(batches(1)[0], None, (3, 1))
    bad = batches(1)[0]._replace(loss=torch.full((32,), torch.nan))
    run.step(bad, None, (4, 2))
    message = (
        "got nan for squared \\(seed 0\\) at step 1, on rows of the blocks 4, 2: lower train.lr"
    )
    with pytest.raises(ValueError, match=message):
        run.objectives()


def test_the_best_is_kept_and_the_earliest_of_equals():
    run, scores = training(), iter([0.6, 0.8, 0.7, 0.8])
    states = []
    for batch in batches(4):
        run.step(batch, None, (0,))
        states.append(weights(run.head("ranking", 0)))
        run.validate(lambda _: next(scores))
    best = run.best["ranking", 0]
    assert (best.score, best.step) == (0.8, 2)
    torch.testing.assert_close(weights(run.kept("ranking", 0)), states[1], rtol=0, atol=0)


def test_where_no_score_is_defined_the_last_is_kept():
    run = training()
    for batch in batches(3):
        run.step(batch, None, (0,))
        run.validate(lambda _: float("nan"))
    assert run.best["ranking", 0].step == 3


@pytest.mark.parametrize("stop", [1, 7, 20])
def test_a_training_goes_on_from_its_state_bit_by_bit(tmp_path, monkeypatch, stop):
    monkeypatch.setattr("askance.heads.resume.SAVE_EVERY", 0)
    stream = batches(20)

    def go(run: Training, last: int) -> Training:
        for batch in stream[run.done : last]:
            run.step(batch, None, (0,))
            run.validate(by_spread)
        return run

    whole = go(training(["ranking", "squared"], seeds=[0, 1]), 20)
    broken = go(training(["ranking", "squared"], seeds=[0, 1]), stop)
    history = [{"step": stop, "objective": broken.objectives()}]
    State(tmp_path / "state", ["data"]).save(broken, history)
    again = training(["ranking", "squared"], seeds=[0, 1])
    assert State(tmp_path / "state", ["data"]).restore(again) == history
    go(again, 20)
    for name in ("ranking", "squared"):
        for seed in (0, 1):
            for one, other in ((again.head, whole.head), (again.kept, whole.kept)):
                assert torch.equal(weights(one(name, seed)), weights(other(name, seed)))
            assert again.best[name, seed].step == whole.best[name, seed].step


def test_a_state_is_not_saved_again_right_after(tmp_path):
    State(tmp_path / "state", ["data"]).save(training(), [])
    assert not (tmp_path / "state").exists()


def test_a_state_of_something_else_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("askance.heads.resume.SAVE_EVERY", 0)
    run = training()
    run.step(batches(1)[0], None, (0,))
    run.validate(by_spread)
    State(tmp_path / "state", ["data"]).save(run, [])
    fresh = training()
    assert State(tmp_path / "state", ["other data"]).restore(fresh) == []
    assert fresh.done == 0
