"""The one writer on a real server: what it leaves in a run, and what every fault leaves."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from mlflow_relabel_audit.errors import StoreError
from mlflow_relabel_audit.tracking import (
    Artifact,
    Manifest,
    Metric,
    Note,
    Store,
    Tag,
    abandon,
    add_artifact,
    begin,
    listing,
    publish,
    read_artifact,
    read_manifest,
    resolve,
)
from mlflow_relabel_audit.tracking.stored import read_files
from tests.servers import Gate, Server
from tests.tracking.logged import FRAME, log_models

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def fitted():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"])


@pytest.fixture
def logged(server_store, fitted):
    run_id, _ = log_models(model=fitted)
    return server_store, resolve(server_store, run_id=run_id)


def outputs(folder: Path, text: str, k: float = 5.0, names: tuple[str, ...] = ("summary.json", "report.html")):
    """One small audit's outputs; ``text`` tells audits apart."""
    folder.mkdir(parents=True, exist_ok=True)
    yielded = []
    for name in names:
        file = folder / name.replace("/", "_")
        file.write_text(f'"{text}"')
        yielded.append(Artifact(name, file))
    values = (Metric("k_median", k), Metric("k_p90", float("inf")), Metric("k_mean", float("nan")))
    return [*yielded, *values, Note(f"**{text}**"), Tag("version", "1"), Tag("verdict", text)]


def manifest(claim_id: str, yielded, fingerprint: str = "f") -> Manifest:
    files = listing(item for item in yielded if isinstance(item, Artifact))
    return Manifest(claim_id, fingerprint, datetime.now(timezone.utc).isoformat(), files)


def audit(store: Store, resolved, folder: Path, text: str, k: float = 5.0, **kwargs):
    claim = begin(store, resolved)
    yielded = outputs(folder, text, k, **kwargs)
    publish(store, claim, yielded, manifest=manifest(claim.audit_id, yielded))
    return claim


def whole(store: Store, run_id: str, folder: Path) -> str | None:
    """The text of the run's audit, after checking that all of its files are that audit's."""
    files = read_files(store, run_id, ("summary.json", "report.html"), folder)
    if files is None:
        return None
    summary, report = (file.read_text() for file in files)
    assert summary == report
    return summary.strip('"')


def test_what_an_audit_leaves(logged, tmp_path):
    store, resolved = logged
    before = store.run(resolved.run_id).info
    store.client.set_tag(resolved.run_id, "mlflow.note.content", "The user's own words.")
    audit(store, resolved, tmp_path / "out", "first")

    run = store.run(resolved.run_id)
    assert (run.info.status, run.info.end_time) == (before.status, before.end_time)
    assert set(store.files(resolved.run_id)) == {"summary.json", "report.html", "manifest.json"}
    assert run.data.metrics == {"relabel_audit/k_median": 5.0}
    assert run.data.tags["relabel_audit.status"] == "complete"
    assert run.data.tags["relabel_audit.verdict"] == "first"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("The user's own words.\n\n<!-- relabel_audit:start -->\n**first**")
    model = store.client.get_logged_model(resolved.model_id)
    assert [(item.key, item.value) for item in model.metrics] == [("relabel_audit/k_median", 5.0)]
    assert model.tags["relabel_audit.verdict"] == "first"
    assert whole(store, resolved.run_id, tmp_path) == "first"


def test_a_rerun_replaces_and_never_doubles(logged, tmp_path):
    store, resolved = logged
    audit(store, resolved, tmp_path / "1", "first", names=("summary.json", "report.html", "old/extra.html"))
    audit(store, resolved, tmp_path / "2", "second")
    audit(store, resolved, tmp_path / "3", "third")

    assert set(store.files(resolved.run_id)) == {"summary.json", "report.html", "manifest.json"}
    assert whole(store, resolved.run_id, tmp_path) == "third"
    run = store.run(resolved.run_id)
    assert run.data.tags["mlflow.note.content"].count("relabel_audit:start") == 1
    assert len(store.client.get_metric_history(resolved.run_id, "relabel_audit/k_median")) == 1
    audit(store, resolved, tmp_path / "4", "fourth", k=6.0)
    assert store.run(resolved.run_id).data.metrics["relabel_audit/k_median"] == 6.0


def test_a_failed_run_stays_failed(server_store, fitted, tmp_path):
    run_id, _ = log_models(model=fitted)
    server_store.client.set_terminated(run_id, "FAILED", end_time=1_700_000_000_000)
    audit(server_store, resolve(server_store, run_id=run_id), tmp_path / "out", "first")
    info = server_store.run(run_id).info
    assert (info.status, info.end_time) == ("FAILED", 1_700_000_000_000)


def test_abandoned_audit_leaves_the_earlier_one_and_one_line(logged, tmp_path, monkeypatch):
    store, resolved = logged
    audit(store, resolved, tmp_path / "1", "first")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    abandon(store, begin(store, resolved), RuntimeError("no memory\nfor http://me:pw@host/?token=abc hunter22"))
    tags = store.run(resolved.run_id).data.tags
    assert tags["relabel_audit.status"] == "failed"
    assert tags["relabel_audit.error"] == "no memory for http://***@host/?token=*** ***"
    assert whole(store, resolved.run_id, tmp_path) == "first"
    audit(store, resolved, tmp_path / "2", "second")
    tags = store.run(resolved.run_id).data.tags
    assert tags["relabel_audit.status"] == "complete"
    assert "relabel_audit.error" not in tags


def test_a_page_is_added_to_the_audit_and_its_manifest(logged, tmp_path):
    store, resolved = logged
    audit(store, resolved, tmp_path / "1", "first")
    page = tmp_path / "17.html"
    page.write_text("contest")
    added = Artifact("contest/17.html", page)
    add_artifact(store, resolved, added, Manifest("x", "f", "now", {}))
    assert set(read_manifest(store, resolved.run_id, tmp_path).artifacts) == {
        "summary.json",
        "report.html",
        "contest/17.html",
    }
    assert read_artifact(store, resolved.run_id, "contest/17.html", tmp_path).read_text() == "contest"
    assert whole(store, resolved.run_id, tmp_path) == "first"


def test_the_later_of_two_audits_stands(logged, tmp_path):
    store, resolved = logged
    audit(store, resolved, tmp_path / "0", "before")
    early, late = begin(store, resolved), begin(store, resolved)
    yielded = outputs(tmp_path / "1", "early")
    with pytest.raises(StoreError, match="another audit of it began after this one, and its result stands") as e:
        publish(store, early, yielded, manifest=manifest(early.audit_id, yielded))
    abandon(store, early, e.value)
    assert store.run(resolved.run_id).data.tags["relabel_audit.status"] == "running"
    assert whole(store, resolved.run_id, tmp_path) == "before"
    yielded = outputs(tmp_path / "2", "late")
    publish(store, late, yielded, manifest=manifest(late.audit_id, yielded))
    assert whole(store, resolved.run_id, tmp_path) == "late"
    assert set(store.files(resolved.run_id)) == {"summary.json", "report.html", "manifest.json"}


def test_two_audits_at_once(logged, tmp_path):
    store, resolved = logged
    ends: list[str] = []

    def one(name: str) -> None:
        try:
            audit(store, resolved, tmp_path / name, name)
            ends.append(name)
        except StoreError as error:
            ends.append(str(error))

    for repeat in range(4):
        ends.clear()
        threads = [threading.Thread(target=one, args=(f"{name}{repeat}",)) for name in "abc"]
        for thread in threads:
            thread.start()
            time.sleep(0.02)
        for thread in threads:
            thread.join()
        assert whole(store, resolved.run_id, tmp_path / str(repeat)) is not None
        assert all(len(end) == 2 or "again" in end for end in ends), ends


def fault(call) -> StoreError | None:
    try:
        call()
    except StoreError as error:
        return error
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "earlier"),
    [("500", False), ("500", True), ("drop", True)],
    ids=["first audit", "rerun", "dropped"],
)
def test_a_fault_at_any_write_leaves_a_whole_audit(mlflow_server, server_store, fitted, tmp_path, how, earlier):
    """The server fails at the n-th write and from then on, for every n; then a repeated command succeeds."""
    step, done = 0, False
    logged_in, _ = log_models(model=fitted)
    template = resolve(server_store, run_id=logged_in)
    while not done:
        run_id = server_store.client.create_run(template.experiment_id).info.run_id
        folder = tmp_path / str(step)
        with Gate(mlflow_server) as gate:
            gate.how = how
            store = Store.connect(gate.url)
            resolved = replace(template, run=store.run(run_id))
            if earlier:
                audit(store, resolved, folder / "old", "old")
            gate.fail_from = len(gate.writes) + step
            failure = fault(lambda: audit(store, resolved, folder / "new", "new", k=6.0))  # noqa: B023
            done = failure is None
            if failure is not None:
                assert failure.exit_code == 3
                assert "again" in str(failure)
                assert "\n" not in str(failure)
            gate.fail_from = None
            found = whole(store, run_id, folder)
            assert found == "new" if done else found in (("old", "new") if earlier else (None, "new"))
            audit(store, resolved, folder / "again", "again")
            assert whole(store, run_id, folder / "then") == "again"
            assert set(store.files(run_id)) == {"summary.json", "report.html", "manifest.json"}
        step += 1
    assert step >= (7 if earlier else 5)


@pytest.mark.parametrize("failing", ["manifest.json", "path="], ids=["download", "listing"])
def test_an_earlier_audit_that_cannot_be_read_is_not_taken_for_none(mlflow_server, logged, tmp_path, failing):
    """Else the audit would be written over it as a first one, and a fault would take both away."""
    store, resolved = logged
    audit(store, resolved, tmp_path / "old", "old")
    with Gate(mlflow_server) as gate:
        gate.fail_reads = failing
        with pytest.raises(StoreError, match="run the same command again"):
            begin(Store.connect(gate.url), resolved)
    assert store.run(resolved.run_id).data.tags["relabel_audit.status"] == "complete"
    assert whole(store, resolved.run_id, tmp_path) == "old"


@pytest.mark.slow
def test_server_killed_in_mid_upload(tmp_path, fitted, monkeypatch):
    import mlflow

    before = mlflow.get_tracking_uri()
    with Server(tmp_path / "server") as server:
        try:
            mlflow.set_tracking_uri(server.url)
            run_id, _ = log_models(model=fitted)
            store = Store.connect(server.url)
            resolved = resolve(store, run_id=run_id)
            audit(store, resolved, tmp_path / "old", "old")
            claim = begin(store, resolved)
            yielded = outputs(tmp_path / "new", "new")
            big = tmp_path / "hessian.npz"
            with big.open("wb") as stream:
                stream.truncate(1 << 29)
            yielded.append(Artifact("hessian.npz", big))
            listed = manifest(claim.audit_id, yielded)
            killer = threading.Timer(0.3, server.kill)
            killer.start()
            with pytest.raises(StoreError, match="run the same command again") as caught:
                publish(store, claim, yielded, manifest=listed)
            abandon(store, claim, caught.value)
            killer.join()
            server.start()
            assert whole(store, run_id, tmp_path / "after") == "old"
            yielded.pop()
            audit(store, resolved, tmp_path / "again", "again")
            assert whole(store, run_id, tmp_path / "then") == "again"
            assert set(store.files(run_id)) == {"summary.json", "report.html", "manifest.json"}
        finally:
            mlflow.set_tracking_uri(before)
