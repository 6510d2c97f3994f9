"""Sums over blocks do not hang on who takes them, and workers take freed memory again."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from mlflow_relabel_audit.rows.store import Fold, joined_nodes, runs

FAULTS = """
import resource, numpy as np
from mlflow_relabel_audit.rows.allocation import keep_freed_memory
print(keep_freed_memory())
np.ones(2**17)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2**17)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("count", [0, 1, 5, 20, 97, 4000])
@pytest.mark.parametrize("most", [1, 2, 5, 16])
def test_runs_are_even(count: int, most: int) -> None:
    found = runs(count, most)
    assert [number for run in found for number in run] == list(range(count))
    assert len(found) <= most
    assert max(map(len, found)) <= 1.25 * count / most + 1


@pytest.mark.parametrize("share", [0.1, 0.9, 1.0])
def test_a_sum_does_not_hang_on_the_parts(share: float) -> None:
    rng = np.random.default_rng(2)
    for count in rng.integers(1, 200, 100).tolist():
        asked = [number for number in range(count) if rng.random() < share]
        results = {number: (rng.standard_normal() * 10.0 ** rng.integers(-8, 8),) for number in asked}
        direct = Fold(("sum",))
        for number in asked:
            direct.add(number, results[number])
        parts = runs(count, int(rng.integers(1, 20)))
        level = [(run, joined_nodes([(i, results[i]) for i in asked if i in run], run, ("sum",))) for run in parts]
        groups = [level[first : first + 3] for first in range(0, len(level), 3)]
        spans = [range(group[0][0].start, group[-1][0].stop) for group in groups]
        several = [
            joined_nodes([item for _, part in group for item in part], span, ("sum",))
            for group, span in zip(groups, spans, strict=True)
        ]
        for found in ([part for _, part in level], several):
            folding = Fold(("sum",))
            for number, partial in (item for part in found for item in part):
                folding.add(number, partial)
            assert folding.result() == direct.result()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults as Linux counts them")
@pytest.mark.parametrize("chosen", [False, True], ids=["dask's default", "the user's own"])
def test_freed_memory_is_taken_again(chosen: bool) -> None:
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    if chosen:
        environment["MALLOC_MMAP_THRESHOLD_"] = "131072"
    answer, faults = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    if answer == "False" and not chosen:
        pytest.skip("no glibc")
    assert answer == str(not chosen)
    assert (int(faults) > 20 * 200) == chosen  # an array of 1 MiB is 256 pages
