"""Passes that begin from what was kept, whatever became of it, against passes that work everything out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mlflow_relabel_audit.flips.refit import beside, passes
from mlflow_relabel_audit.flips.refit.rows import Cells, RefitRows, Weighing
from mlflow_relabel_audit.rows import shelf
from mlflow_relabel_audit.rows.shelf import Shelf
from tests.flips.fitting import fitted

RNG = np.random.default_rng(12)
WIDTH = 5


@pytest.mark.parametrize("fate", ["kept", "lost", "repeated", "forgotten"])
def test_what_is_kept_changes_nothing(fate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted(n=400)
    rows, point = model.rows, model.point
    block, n = rows.store.block(0), rows.n
    held = Shelf()
    monkeypatch.setattr(beside, "SHELF", held)
    if fate == "forgotten":
        monkeypatch.setattr(shelf, "SHELF_BYTES", 100)
    moment = beside.Moment(WIDTH, live=True)
    theta = np.repeat(point.theta[:, None], WIDTH, axis=1)
    u = 0.1 * RNG.standard_normal((rows.p, WIDTH))
    sets = Cells.of([np.sort(RNG.choice(n, 9, replace=False)) for _ in range(WIDTH)])
    own_rows = [
        np.sort(RNG.choice(n, 7, replace=False)) if column == 1 else np.zeros(0, int) for column in range(WIDTH)
    ]
    references = Cells.of(own_rows, [RNG.random(len(part)) for part in own_rows])
    sets = dataclasses.replace(sets, value=1.0 - rows.y[sets.row])
    squares = model.point.curvature.row_norms(rows) ** 2
    weighing = Weighing(model.problem.likelihood, np.ones((2, 1, WIDTH)), False)

    def seen() -> RefitRows:
        vectors = (rows.y, rows.base_weight, point.weight, point.diagonal, squares)
        return RefitRows(*vectors, weighing, sets, references, None, moment.ticket(0))

    def compare(name: str, *given: Any) -> None:
        if fate == "lost" and RNG.random() < 0.5:
            held.take((moment._search, 0))
        kept = getattr(beside, name)(block, seen(), *given)
        if fate == "repeated":
            kept = getattr(beside, name)(block, seen(), *given)
        for one, two in zip(kept, getattr(passes, name)(block, seen(), *given), strict=True):
            assert one == pytest.approx(two, rel=1e-5, abs=1e-9)

    compare("evaluate", theta, None, u)
    for turn in range(6):
        if turn in (1, 3):  # another prediction in some columns
            slots = np.array([0, 3])
            moment.change(slots)
            theta[:, slots], u[:, slots] = point.theta[:, None], 0.1 * RNG.standard_normal((rows.p, 2))
        direction, step = RNG.standard_normal(theta.shape), RNG.random(WIDTH)
        compare("bend", theta, direction)
        slots = np.array([1, 4])
        compare("slope", theta, direction, step[slots], slots)
        theta = theta + step * direction
        moment.moves += 1
        compare("evaluate", theta, step, u)
    assert bool(held._held) == (fate != "forgotten")


def test_a_shelf_lets_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "SHELF_BYTES", 25)
    held = Shelf()
    for key in "abc":
        held.put(key, key.upper(), 10)
    assert held.take("a") is None
    assert held.take("b") == "B"
    assert held.take("b") is None
    assert held.take("c") == "C"
