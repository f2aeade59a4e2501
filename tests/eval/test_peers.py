"""The comparison with other libraries: an explanation holds only where it applies."""

import math
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from askance.eval import accumulators as accumulators  # makes torchmetrics importable

SPEC = spec_from_file_location("peers", Path(__file__).parents[2] / "benchmarks" / "peers.py")
PEERS = module_from_spec(SPEC)
SPEC.loader.exec_module(PEERS)


@pytest.mark.filterwarnings("ignore:invalid value")  # of the ways, on constant columns
def test_a_wrong_zero_of_a_defined_metric_is_not_explained_as_undefined():
    rows = [row for row in PEERS.correlations() if PEERS.UNDEFINED in row.ways]
    assert {row.metric for row in rows} == {"r_auroc", "spearman"}
    for row in rows:
        for case in (PEERS.queries() if row.metric == "r_auroc" else PEERS.pairs()).values():
            ours = float(row.ours(*case))
            defined = not math.isnan(ours)
            expected = "UNEXPLAINED" if defined else PEERS.UNDEFINED
            assert PEERS.verdict(row, case, 0.0, ours) == expected


def test_a_missing_coverage_is_explained_only_where_there_is_none():
    way = PEERS.nan_where_zero(PEERS.coverage)
    cases = PEERS.queries()
    assert math.isnan(way(*cases["no hit"]))
    assert way(*cases["no ties"]) == math.inf
