"""No password, token or signature in anything that is shown."""

from __future__ import annotations

import pytest

from mlflow_relabel_audit.tracking.credentials import one_line, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://me:p@w@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("https://token@host", "https://***@host"),
        (
            "see https://b.s3.example/x?X-Amz-Signature=abc&y=1",
            "see https://b.s3.example/x?X-Amz-Signature=***&y=1",
        ),
        ("wasbs://c@account.example/x?sig=abc", "wasbs://***@account.example/x?sig=***"),
        ("sqlite:////home/a/mlflow.db", "sqlite:////home/a/mlflow.db"),
        ("me@example.org", "me@example.org"),
        ("http://host/a and b@c", "http://host/a and b@c"),
    ],
)
def test_uris(text, shown):
    assert redact(text) == shown


def test_secrets_of_the_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcdef123")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "zyxwvu")
    assert redact("got abcdef123 and zyxwvu") == "got *** and ***"


def test_one_line():
    assert one_line("a\n  b\tc") == "a b c"
    assert len(one_line("x" * 5000)) == 400
