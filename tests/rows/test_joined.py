import numpy as np
import pytest
import scipy.sparse as sp

from mlflow_relabel_audit.rows import JoinedStore, RowBlock, Rows, joined, steps, store


@pytest.fixture(params=[False, True], ids=["dense", "sparse"])
def pair(request, monkeypatch):
    """Two sets of rows, seen as one, and the same rows in one array; in blocks of a few rows."""
    monkeypatch.setattr(store, "BLOCK_BYTES", 8 * 7 * 64)
    monkeypatch.setattr(store, "SPARSE_ROWS", 50)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 7)) * (rng.random((300, 7)) < 0.5)
    y, weight = (rng.random(300) < 0.5).astype(float), rng.random(300)
    kind = sp.csr_matrix if request.param else np.asarray
    parts = [Rows(kind(X[s]), y[s], weight[s], intercept=True) for s in (slice(0, 200), slice(200, 300))]
    return joined(*parts), Rows(kind(X), y, weight, intercept=True)


def test_joined_rows_answer_as_one(pair):
    one, whole = pair
    assert isinstance(one.store, JoinedStore)
    assert (one.n, one.p, one.nnz, one.sparse) == (whole.n, whole.p, whole.nnz, whole.sparse)
    assert len(one.store.bounds) > 2
    np.testing.assert_array_equal(one.y, whole.y)
    np.testing.assert_array_equal(one.base_weight, whole.base_weight)
    rng = np.random.default_rng(1)
    theta, residual, diagonal = rng.normal(size=(one.p, 3)), rng.normal(size=(one.n, 2)), rng.random(one.n)
    np.testing.assert_allclose(one.margins(theta), whole.margins(theta))
    np.testing.assert_allclose(one.pull(residual), whole.pull(residual))
    np.testing.assert_allclose(one.gram(diagonal), whole.gram(diagonal))
    np.testing.assert_allclose(one.column_squares(diagonal), whole.column_squares(diagonal))
    index = np.array([3, 199, 200, 299])
    np.testing.assert_allclose(one.columns(index), whole.columns(index))


def test_a_step_that_asks_one_part_alone(pair):
    one, whole = pair
    index = np.array([10, 20])  # the second part has no row of these
    np.testing.assert_allclose(one.part_gram(index, np.ones(2)), whole.part_gram(index, np.ones(2)))


def test_the_smallest_entry(pair):
    one, whole = pair
    dense = whole.features.toarray() if whole.sparse else whole.features
    assert one.reduce(steps.lowest, join=("min",)) == (dense.min(),)


def _doubled(_: RowBlock, values: np.ndarray) -> np.ndarray:
    return 2.0 * values


def _largest(_: RowBlock, kept: np.ndarray, values: np.ndarray) -> tuple[np.ndarray]:
    """The three largest of what was kept, with the values themselves below them."""
    first = np.argsort(-kept, kind="stable")[:3]
    return (np.stack([kept[first], values[first]]),)


def test_what_is_kept_goes_along_with_its_blocks(pair):
    values = np.random.default_rng(2).permutation(300).astype(float)
    wanted = [[598.0, 596.0, 594.0], [299.0, 298.0, 297.0]]
    for rows in pair:
        kept = rows.keep(_doubled, along=(values,))
        (found,) = rows.reduce(_largest, along=(kept, values), join=("larger",))
        np.testing.assert_array_equal(found, wanted)
