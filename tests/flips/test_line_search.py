"""A line is searched until it is nearly flat, whatever Newton alone would do."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_relabel_audit.flips.refit.line_search import FLAT, bracketed


@pytest.mark.parametrize("first", [0.5, 2.0, 8.0])
def test_the_slope_becomes_small(first):
    """log cosh has its minimum at ``middle``; Newton alone leaves from afar for the other side, further each time."""
    middle = np.array([1.0, 2.0, 4.0])

    def look(some, at):
        return np.tanh(at - middle[some]), 1.0 / np.cosh(at - middle[some]) ** 2

    slope = np.tanh(-middle)
    step = bracketed(look, np.full(3, first), slope)
    here, _ = look(np.arange(3), step)
    assert (step > 0).all()
    assert (np.abs(here) <= FLAT * np.abs(slope)).all()


def test_columns_do_not_feel_each_other():
    rng = np.random.default_rng(0)
    middle, width = rng.uniform(0.1, 9, 20), rng.uniform(0.1, 3, 20)

    def look_at(index):
        def look(some, at):
            move = (at - middle[index][some]) / width[index][some]
            return np.tanh(move), 1.0 / np.cosh(move) ** 2 / width[index][some]

        return look

    whole = bracketed(look_at(np.arange(20)), np.ones(20), np.tanh(-middle / width))
    for t in range(20):
        one = bracketed(look_at(np.array([t])), np.ones(1), np.tanh(-middle[t : t + 1] / width[t : t + 1]))
        assert one[0] == whole[t]
