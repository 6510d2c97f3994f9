"""The published algorithm, as it is timed and as it is run on large sets."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from benchmarks.paper.transcribed import transcribed
from benchmarks.published import PublishedRun, fit, published, refit_flips
from benchmarks.sets import drawn


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.25])
def test_the_cheap_form_finds_the_same_sets(sparse: bool, threshold: float) -> None:
    data = drawn(300, 8, 40, l2=20.0)
    X, X_test = (sp.csr_array(part) if sparse else part for part in (data.X, data.X_test))
    model = fit(X, data.y, data.l2)
    ours = transcribed(model, X, data.y, X_test, data.l2, threshold)
    theirs = published(model, X, data.y, X_test, data.l2, threshold)
    assert ours.probability == pytest.approx(theirs.probability)
    assert ours.k.tolist() == theirs.k.tolist()
    assert (ours.k > 0).any()
    for mine, other in zip(ours.sets, theirs.sets, strict=True):
        assert mine.tolist() == other.tolist()


def test_labels_leak_from_one_test_point_to_the_next() -> None:
    data = drawn(300, 8, 40, l2=20.0)
    run = transcribed(fit(data.X, data.y, data.l2), data.X, data.y, data.X_test, data.l2)
    t = int(np.flatnonzero(run.k)[0])
    twice = PublishedRun(run.probability[[t, t]], run.k[[t, t]], [run.sets[t]] * 2, 0.0, 0.0)
    rows = data.X_test[[t, t]]
    assert refit_flips(twice, data.X, data.y, rows, data.l2, leak=False).tolist() == [1.0, 1.0]
    # the second time the same labels go back to what they were
    assert refit_flips(twice, data.X, data.y, rows, data.l2, leak=True).tolist() == [1.0, 0.0]
    none = PublishedRun(run.probability[[t]], np.array([0]), [run.sets[t][:0]], 0.0, 0.0)
    assert np.isnan(refit_flips(none, data.X, data.y, rows[:1], data.l2)).all()
