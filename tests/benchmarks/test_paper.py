"""The reproduction of the paper, from files to its page, on small drawn sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, spearmanr

from benchmarks.paper import intervals
from benchmarks.paper.__main__ import main
from benchmarks.paper.bench import FULL, Bench
from benchmarks.paper.catalogue import GRID, PAPER, Entry, chosen, tune
from benchmarks.paper.orders import METHODS
from benchmarks.paper.plan import NAMES, RESTS_ON
from benchmarks.paper.store import Key, Store
from benchmarks.sets import drawn, tabular

WORDS = np.array([f"word{i}" for i in range(40)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets: ``notes``, a text, and ``forms``, a table with an id, a missing value and a category seen once."""
    path = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    weight = rng.normal(size=len(WORDS))
    for part, n in (("train", 240), ("test", 60)):
        used = np.array([rng.choice(len(WORDS), 6, replace=False) for _ in range(n)])
        label = (weight[used].sum(axis=1) + rng.logistic(size=n) > 0).astype(int)
        texts = [" ".join(WORDS[row]) for row in used]
        pd.DataFrame({"note": texts, "label": label}).to_parquet(path / f"notes_{part}.parquet")
        size, kind = rng.normal(size=n), rng.choice(["a", "b", "c"], n)
        label = (size + (kind == "b") + rng.logistic(size=n) > 0.5).astype(int)
        size[0], kind[1] = np.nan, "only once"
        frame = pd.DataFrame({"Id": np.arange(n), "size": size, "kind": kind, "label": label})
        frame.to_parquet(path / f"forms_{part}.parquet")
    return path


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(folder), "--out", str(out), "--quick", *more]


@pytest.mark.slow
def test_sets_not_seen_before_run_whole_and_are_taken_up_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--set", "notes", "--text", "note", "--l2", "3"]
    assert main(arguments(folder, tmp_path, *text)) == 0
    assert main(arguments(folder, tmp_path, "--set", "forms", "--l2", "10")) == 0
    first = capsys.readouterr()
    assert "failed" not in first.err
    store = Store(tmp_path / "results")

    found = store.read(Key("notes-counts", "k"))
    assert found is not None
    assert set(found["status"]) == {"verified"}
    sure = [one for one in found["confirmed"] if not one["doubtful"]]
    assert sure
    assert all(one["flips"] and not one["one_less_flips"] for one in sure)
    assert store.settings(Key("notes-counts", "k"))["l2"] == 3

    moved = store.read(Key("forms", "orders"))["moved"]
    ours = np.mean(moved[METHODS[0]], axis=0)
    assert all(ours[-1] >= np.mean(moved[name], axis=0)[-1] - 1e-6 for name in METHODS[1:])
    assert np.mean(moved["random"], axis=0)[-1] < ours[-1]

    planted = store.read(Key("forms", "tag"))
    assert 0.1 < planted["base_rate"] < 0.3
    assert np.mean(planted["X"]["share"]) > planted["base_rate"]
    removed = store.read(Key("forms", "removal"))
    assert all(one["planted"] == 0 for one in removed["clean"]["relabel"])
    assert sum(one["planted"] for one in removed["noisy"]["relabel"]) > 0

    page = (tmp_path / "paper.md").read_text(encoding="utf-8")
    for words in ("Table 1", "Table 2", "Figure 2", "Figure 6", "Section 3.4", "Tables 4 and 7", "Tables 3 and 8"):
        assert words in page
    assert "notes-counts" in page
    assert "not stated here" in page
    for name in ("figure-2-paper", "figure-3-7-9-paper", "figure-5-8-10-paper", "figure-6-paper"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5000
        assert f"figures/{name}.png" in page

    assert main(arguments(folder, tmp_path, *text)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert lines
    assert all("  held  " in line for line in lines)


def test_without_files_it_says_what_is_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, tmp_path)) == 2
    assert "sst_train.parquet" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(arguments(folder, tmp_path, "--l2", "-1"))
    assert "pass a positive penalty" in capsys.readouterr().err


def test_names_choose_sets(folder: Path, tmp_path: Path) -> None:
    for path in {path for entry in PAPER for path in entry.files(tmp_path)}:
        pd.DataFrame({"text": ["a"], "label": [0]}).to_parquet(path)
    assert chosen(tmp_path, [], None, None, None) == (list(PAPER), [])
    assert [entry.name for entry in chosen(tmp_path, ["sst"], None, None, None)[0]] == [
        "sst-words",
        "sst-counts",
        "sst-embeddings",
    ]
    assert chosen(tmp_path, ["loan"], None, None, None)[0][0].l2 == 100
    assert chosen(tmp_path, ["loan"], None, 7.0, None)[0] == [Entry("loan", "table", 7.0, added=True)]
    entries, absent = chosen(folder, ["forms", "elsewhere"], None, None, None)
    assert [entry.name for entry in entries] == ["forms"]
    assert "elsewhere_train.parquet" in absent[0]
    assert chosen(folder, ["notes"], "words", None, None) == (
        [],
        ["notes-counts: no column words in notes_train.parquet; it has note, label"],
    )


def test_a_table_is_encoded_without_its_id(folder: Path) -> None:
    data = tabular(folder, "forms", 1.0)
    assert data.X.shape[1] == 1 + 4
    assert data.X_test.shape[1] == data.X.shape[1]
    assert np.isfinite(data.X).all()
    assert abs(data.X[:, 0].mean()) < 1e-12


def test_results_are_kept_whole_and_by_their_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, key = Store(tmp_path), Key("set", "k", "tuned", 2)
    assert store.read(key) is None
    held = store.write(key, {"l2": 1.0, "sizes": (3, 4)}, {"k": np.array([1.0, np.nan]), "n": np.int64(3)})
    assert held == {"k": [1.0, None], "n": 3} == store.read(key, {"l2": 1.0, "sizes": (3, 4)})
    assert store.read(key, {"l2": 2.0, "sizes": (3, 4)}) is None
    assert store.every("k") == [(key, held)]
    with pytest.raises(TypeError):
        store.write(key, {}, {"k": object()})
    monkeypatch.setattr(Path, "replace", lambda self, other: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.write(key, {"l2": 1.0}, {"k": []})
    assert store.read(key) == held
    store.path(key).write_text('{"half', encoding="utf-8")
    assert store.read(key) is None


def test_intervals_are_those_of_scipy() -> None:
    flags = [True] * 7 + [False] * 25 + [None]
    share = intervals.share(flags)
    wilson = binomtest(7, 32).proportion_ci(method="wilson")
    assert (share["low"], share["high"]) == pytest.approx((wilson.low, wilson.high))
    assert intervals.share([True] * 5)["high"] == 1.0
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, 80).astype(float)
    b = a + rng.normal(0, 4, 80)
    ranked = intervals.rank_correlation([*a, None], [*b, 1.0])
    assert ranked["value"] == pytest.approx(spearmanr(a, b).statistic)
    assert ranked["low"] < ranked["value"] < ranked["high"]
    mean = intervals.mean([*b, None])
    half = 1.96 * b.std(ddof=1) / np.sqrt(80)
    assert (mean["high"] - mean["low"]) / 2 == pytest.approx(half, rel=0.15)
    assert intervals.mean([None])["value"] is None


def test_the_tuned_penalty_has_the_least_loss_out_of_fold() -> None:
    data = drawn(400, 30, 10)
    l2, losses = tune(data)
    assert l2 in GRID
    assert losses[f"{l2:g}"] == min(losses.values())
    assert l2 > 1  # 30 columns and wrong labels: none at all is too little


def test_test_rows_are_the_same_for_all_features_and_nested() -> None:
    data = drawn(50, 4, 90)
    bench = Bench(PAPER[0], Path(), data, FULL)
    few, more = bench.test_rows(10), bench.test_rows(40)
    assert set(few) < set(more)
    assert len(set(more)) == 40
    noisy = bench.relabelled(np.array([0, 3]))
    assert np.flatnonzero(noisy.data.y != data.y).tolist() == [0, 3]


def test_every_experiment_says_what_its_results_rest_on() -> None:
    assert set(RESTS_ON) == set(NAMES)
    sizes = set(json.loads(json.dumps(FULL.__dict__)))
    assert {name for names in RESTS_ON.values() for name in names} <= sizes
