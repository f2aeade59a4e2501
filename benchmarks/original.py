"""A stand-in for how the original program trains from its cache, whole and in parts.

Its cache is one HDF5 file of float32 embeddings and labels, grown by a batch of 128 at a time: h5py
chooses chunks of 16 x 192 numbers. Rows are read one by one in random order by 4 workers. Each
batch of 128 goes through the frozen classifier of 21,843 classes for its losses and its accuracy,
then through the head; 16 batches make one step of AdamW. The classifier stays in float32: autocast
rounds it anew for each batch.
"""

import warnings
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.data import DataLoader, Dataset

from askance.features.store import FeatureStore
from askance.heads.catalogue import find
from askance.heads.fit import optimiser
from askance.heads.head import Setup
from askance.heads.ranking import ranking_loss
from benchmarks.rates import Way

BATCH, ACCUMULATED, WORKERS = 128, 16, 4
STEPS, RATE = 4, 2.8e-3  # steps: of a turn

Feed = Iterator[tuple[Tensor, Tensor]]  # embeddings, and their labels or losses
Losses = Callable[[Setup, Tensor, Tensor], Tensor]


def write(path: Path, features: FeatureStore, losses: FeatureStore) -> None:
    """Write all rows of a store, as the original caches them; and their losses, as it does not."""
    views = len(features.views)
    columns = {
        "embed": features.read("embedding").reshape(-1, features.array("embedding").shape[-1]),
        "label": features.labels.repeat(views)[:, None],
        "loss": losses.read("loss").reshape(-1, 1),
    }
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            first = values[:BATCH].astype(np.float32)
            array = file.create_dataset(name, data=first, maxshape=(None, first.shape[1]))
            for start in range(BATCH, len(values), BATCH):
                part = values[start : start + BATCH]
                array.resize(start + len(part), axis=0)
                array[start:] = part


class Rows(Dataset[tuple[Tensor, float]]):
    """The rows of the file, each read when asked for, with one number of each."""

    def __init__(self, path: Path, number: str) -> None:
        self.path, self.number = path, number
        self.file: h5py.File | None = None
        with h5py.File(path) as file:
            self.length = len(file["embed"])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> tuple[Tensor, float]:
        if self.file is None:  # in the worker: an open file can't be sent there
            self.file = h5py.File(self.path)
            self.embed, self.numbers = self.file["embed"], self.file[self.number]
        return torch.from_numpy(self.embed[row]), float(self.numbers[row, 0])


def by_row(path: Path, number: str) -> Feed:
    """Yield the file's rows in random order, endlessly, from workers."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # as many as it has cores
    loader = DataLoader(
        Rows(path, number), BATCH, shuffle=True, drop_last=True, num_workers=WORKERS
    )
    return chain.from_iterable(repeat(loader))


def recomputed(setup: Setup, embedding: Tensor, label: Tensor) -> Tensor:
    """Return the losses of rows by the frozen classifier, as the original computes them."""
    label = label.long()
    logits = linear(embedding, setup.weight, setup.bias)
    (logits.topk(1).indices[:, 0] == label).float().mean()  # it logs the accuracy
    return cross_entropy(logits.float(), label, reduction="none")


def cached(_: Setup, __: Tensor, loss: Tensor) -> Tensor:
    """Return the losses as they were read."""
    return loss.float()


def loop(setup: Setup, feed: Feed, losses: Losses, *, bfloat16: bool) -> Way:
    """Return some steps, each on 16 batches of 128."""
    head = find("ranking")(setup)
    adamw = optimiser(head)
    for group in adamw.param_groups:
        group["lr"] = RATE

    def step() -> None:
        for _ in range(ACCUMULATED):
            embedding, number = next(feed)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = losses(setup, embedding, number)
                objective = ranking_loss(head(embedding), loss)
            (objective / ACCUMULATED).backward()
        adamw.step()
        adamw.zero_grad()

    def some() -> int:
        for _ in range(STEPS):
            step()
        return STEPS * ACCUMULATED * BATCH

    return some
