"""The gate on a real registry: what passes, what fails closed, what it writes and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit import audit
from mlflow_relabel_audit import gate as gate_module
from mlflow_relabel_audit.cli import main
from mlflow_relabel_audit.errors import GateFailedError, RequestError, StoreError
from mlflow_relabel_audit.gate import gate, read_policy, read_rule
from mlflow_relabel_audit.tracking import Store, read_summary
from tests.tracking.logged import FRAME, log_models

HOLDS, FAILS = "k_median >= 1", "k_median >= 1000"
VERDICT, REASON = "relabel_audit.verdict", "relabel_audit.verdict_reason"


@dataclass
class Registered:
    store: Store
    run_id: str
    models: dict
    data: dict[str, str]

    def tags(self, version: str = "1") -> dict[str, str]:
        return dict(self.store.client.get_model_version("loan", version).tags)

    def aliases(self) -> dict[str, str]:
        return {name: str(number) for name, number in self.store.client.get_registered_model("loan").aliases.items()}

    def generation(self) -> int:
        file = mlflow.artifacts.download_artifacts(run_id=self.run_id, artifact_path="relabel_audit/manifest.json")
        return int(json.loads(Path(file).read_text())["generation"])


@pytest.fixture
def loan(store, tmp_path) -> Registered:
    """Version 1 of ``loan``, alias ``candidate``; its run also holds a model that is not registered."""
    X, y = FRAME[["a", "b"]], FRAME["label"]
    models = {"model": LogisticRegression().fit(X, y), "other": LogisticRegression(C=0.01).fit(X, y)}
    run_id, logged = log_models(**models)
    mlflow.register_model(logged["model"].model_uri, "loan")
    store.client.set_registered_model_alias("loan", "candidate", "1")
    FRAME.to_parquet(tmp_path / "rows.parquet")
    data = {
        "train_data": str(tmp_path / "rows.parquet"),
        "target": "label",
        "eval_data": str(tmp_path / "rows.parquet"),
    }
    return Registered(store, run_id, logged, data)


# Rules and policies


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("k_median >= 20", ("k_median", ">=", 20.0)),
        (" relabel_audit/noise_rate<.05 ", ("noise_rate", "<", 0.05)),
        ("k_p10>-1e-3", ("k_p10", ">", -1e-3)),
        ("suspect_count == 0", ("suspect_count", "==", 0.0)),
        ("seconds<=60", ("seconds", "<=", 60.0)),
    ],
)
def test_rules_are_read(text, parts):
    rule = read_rule(text)
    assert (rule.metric, rule.comparison, rule.bound) == parts
    assert read_rule(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k_median",
        "k_median >=",
        ">= 3",
        "k_median => 3",
        "k_median = 3",
        "k_median != 3",
        "k_median >= many",
        "k_median >= nan",
        "k_median <= inf",
        "k_median >= 3 4",
        "1 >= 3",
        "k_median >= 3 <= 4",
        "other/k >= 3",
    ],
)
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(RequestError, match="METRIC OP NUMBER"):
        read_rule(text)


@pytest.mark.parametrize(
    ("comparison", "holds"),
    [
        (">=", (False, True, True)),
        (">", (False, False, True)),
        ("==", (False, True, False)),
        ("<=", (True, True, False)),
        ("<", (True, False, False)),
    ],
)
def test_rules_compare(comparison, holds):
    rule = read_rule(f"k {comparison} 3")
    assert tuple(rule.check({"k": value}).passed for value in (2.0, 3.0, 4.0)) == holds


@pytest.mark.parametrize("metrics", [{}, {"k": float("nan")}, {"k": float("inf")}], ids=str)
@pytest.mark.parametrize("comparison", [">=", "<=", "<"])
def test_a_missing_figure_fails_whatever_is_asked_of_it(metrics, comparison):
    check = read_rule(f"k {comparison} 3").check(metrics)
    assert (check.value, check.passed) == (None, False)
    assert "the audit has no such figure" in str(check)


def test_a_policy_is_read(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text('[require]\nk_median = ">= 20"\nnoise_rate = [">= 0", "<= 0.1"]\n')
    assert [str(rule) for rule in read_policy(file)] == ["k_median >= 20", "noise_rate >= 0", "noise_rate <= 0.1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rule"),
        ("[require]\n", "has no rule"),
        ("[require\n", "not TOML"),
        ("[required]\nk_median = '>= 3'\n", "does not know required"),
        ("[require]\nk_median = 3\n", "got k_median = 3"),
        ("[require]\nk_median = []\n", r"got k_median = \[\]"),
        ("[require]\nk_median = '=> 3'\n", "got k_median = '=> 3'"),
        ("[require]\n'k median' = '>= 3'\n", "METRIC OP NUMBER"),
    ],
)
def test_what_is_no_policy_is_refused(content, message, tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(content)
    with pytest.raises(RequestError, match=message):
        read_policy(file)


def test_a_policy_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="No such file"):
        read_policy(tmp_path / "policy.toml")


def test_without_a_reader_of_toml_the_message_says_what_to_do(tmp_path, monkeypatch):
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ModuleNotFoundError
    with pytest.raises(RequestError, match="pip install tomli"):
        read_policy(tmp_path / "policy.toml")


# Requests that are refused before anything is read or written


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "got no rule"),
        ({"require": ["k_median"]}, "METRIC OP NUMBER"),
        ({"require": [HOLDS], "promote": "v3"}, "alias 'v3'"),
        ({"require": [HOLDS], "promote": "a b"}, "alias 'a b'"),
    ],
)
def test_refused_without_a_store(asked, message):
    with pytest.raises(RequestError, match=message):
        gate("models:/loan@candidate", tracking_uri="http://127.0.0.1:9", **asked)


def test_only_registered_versions_are_judged(loan):
    for uri in (f"models:/{loan.models['model'].model_id}", f"runs:/{loan.run_id}/model"):
        with pytest.raises(RequestError, match="not a registered version"):
            gate(uri, [HOLDS])
    with pytest.raises(RequestError, match=r"champion"):
        gate("models:/loan@champion", [HOLDS])
    assert not loan.tags()


# Verdicts


def test_it_audits_once_tags_and_promotes_on_pass_alone(loan):
    failed = gate("models:/loan@candidate", [HOLDS, FAILS], promote="champion", **loan.data)
    assert (failed.passed, failed.audited, failed.promoted) == (False, True, None)
    assert [check.passed for check in failed.checks] == [True, False]
    assert loan.tags()[VERDICT] == "fail"
    assert loan.tags()[REASON] == failed.reason == f"{FAILS}: is {failed.metrics['k_median']:g}"
    assert loan.aliases() == {"candidate": "1"}
    with pytest.raises(GateFailedError, match=r"loan version 1 failed its gate: k_median >= 1000: is"):
        failed.raise_for_failure()

    # The audit is stored now, so no rows are needed.
    passed = gate("models:/loan@candidate", [HOLDS], promote="champion")
    assert (passed.passed, passed.audited, passed.promoted) == (True, False, "champion")
    assert passed.metrics == failed.metrics
    assert passed.messages == failed.messages
    assert loan.tags()[VERDICT] == "pass"
    assert loan.tags()[REASON] == passed.reason
    assert loan.aliases() == {"candidate": "1", "champion": "1"}
    passed.raise_for_failure()
    assert loan.generation() == 1
    found = loan.store.client.search_model_versions(f"tags.`{VERDICT}` = 'pass'")
    assert [(version.name, str(version.version)) for version in found] == [("loan", "1")]

    # A champion that fails later is told so, and stays where it is until someone moves the alias.
    assert not gate("models:/loan@champion", [FAILS], promote="champion").passed
    assert loan.tags()[VERDICT] == "fail"
    assert loan.aliases()["champion"] == "1"


def test_a_figure_the_audit_lacks_fails_closed(loan):
    result = gate("models:/loan/1", [HOLDS, "k_mediam >= 1", "bias_max_lift <= 2"], promote="champion", **loan.data)
    assert not result.passed
    assert result.reason == (
        "k_mediam >= 1: the audit has no such figure; bias_max_lift <= 2: the audit has no such figure"
    )
    assert loan.tags()[VERDICT] == "fail"
    assert "champion" not in loan.aliases()
    with pytest.raises(GateFailedError, match=r"the audit's figures: .*k_median"):
        result.raise_for_failure()


def test_when_a_stored_audit_does_not_count(loan):
    """Another model's, another threshold's, a damaged one, or when told so."""
    with pytest.raises(RequestError, match="has no stored audit"):
        gate("models:/loan/1", [HOLDS])
    audit(loan.run_id, model_name="other", **loan.data)
    with pytest.raises(RequestError, match="has no stored audit"):
        gate("models:/loan/1", [HOLDS])
    assert not loan.tags()
    assert gate("models:/loan/1", [HOLDS], **loan.data).audited
    assert not gate("models:/loan/1", [HOLDS], threshold=0.5).audited
    with pytest.raises(RequestError, match="threshold to judge it by"):
        gate("models:/loan/1", [HOLDS], threshold=0.4)
    assert gate("models:/loan/1", [HOLDS], threshold=0.4, **loan.data).audited
    assert gate("models:/loan/1", [HOLDS], again=True, **loan.data).audited

    run = loan.store.run(loan.run_id)
    Path(run.info.artifact_uri.removeprefix("file://"), "relabel_audit", "summary.json").write_text(
        '{"metrics": {"k_median": 5000}, "messages": []}'
    )
    with pytest.raises(RequestError, match="has no stored audit"):
        gate("models:/loan/1", [FAILS], promote="champion")
    assert "champion" not in loan.aliases()


def test_the_version_is_judged_that_the_alias_named_at_first(loan, monkeypatch, tmp_path):
    """An alias that moves during the audit changes neither what is judged nor what is tagged."""
    mlflow.register_model(loan.models["other"].model_uri, "loan")
    real = gate_module.audit

    def moves(**options):
        loan.store.client.set_registered_model_alias("loan", "candidate", "2")
        return real(**options)

    monkeypatch.setattr(gate_module, "audit", moves)
    result = gate("models:/loan@candidate", [HOLDS], promote="champion", **loan.data)
    assert result.version == "1"
    assert read_summary(loan.store, loan.run_id, tmp_path)["model_id"] == loan.models["model"].model_id
    assert loan.aliases() == {"candidate": "2", "champion": "1"}
    assert (loan.tags("1")[VERDICT], VERDICT in loan.tags("2")) == ("pass", False)


def test_without_tags_the_registry_is_only_read(loan):
    assert gate("models:/loan/1", [HOLDS], tag=False, **loan.data).passed
    assert not loan.tags()


def test_a_registry_that_refuses_exits_3_with_the_verdict(loan, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    gate("models:/loan/1", [HOLDS], tag=False, **loan.data)

    def refuse(*_: object) -> None:
        raise MlflowException("no", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(type(loan.store.client), "set_model_version_tag", refuse)
    with pytest.raises(StoreError, match=r"may not write to it; the verdict is pass .* --no-tag"):
        gate("models:/loan/1", [HOLDS])


# The command


def test_the_command(loan, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('[require]\nflippable_share = ">= 0"\n')
    data = [word for name, value in loan.data.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = ["gate", "--model-uri", "models:/loan@candidate", "--promote", "champion"]
    unready = CliRunner().invoke(main, [*words, "--require", HOLDS])
    assert unready.exit_code == 2
    assert "pass the rows with --train-data" in unready.stderr
    failed = CliRunner().invoke(main, [*words, "--require", FAILS, "--policy", str(policy), *data])
    assert failed.exit_code == 1, failed.output
    assert "k_median >= 1000" in failed.stdout
    assert failed.stderr.startswith("Error: model loan version 1 failed its gate: k_median >= 1000: is ")
    assert failed.stderr.count("\n") == 1
    passed = CliRunner().invoke(main, [*words, "--require", HOLDS, "--policy", str(policy)])
    assert passed.exit_code == 0, passed.output
    lines = [line.split() for line in passed.stdout.splitlines()]
    assert ["flippable_share", ">=", "0", "1", "pass"] in lines
    assert "Alias champion of loan now points to version 1." in passed.stdout
    assert loan.run_id in passed.stdout


@pytest.mark.slow
def test_the_example_for_ci(loan, tmp_path):
    """As a pipeline would run it: another process, which stops where the gate fails."""
    script = Path(__file__).resolve().parents[1] / "examples" / "gate_in_ci.sh"
    place = str(Path(sys.executable).parent)
    settings = {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
    settings["MLFLOW_TRACKING_URI"] = loan.store.tracking_uri
    words = [word for name, value in loan.data.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = subprocess.run(["sh", script, "loan", *words], cwd=tmp_path, env=settings, capture_output=True, text=True)
    failed = loan.tags()[VERDICT] == "fail"
    assert done.returncode == int(failed), done.stderr
    assert ("deploying models:/loan@champion" in done.stdout) is not failed
    assert ("champion" in loan.aliases()) is not failed
    assert "k_median >= 20" in done.stdout
