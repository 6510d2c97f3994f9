"""Keep passwords, tokens and signed URLs out of every message, artifact and tag."""

from __future__ import annotations

import os
import re

_USER_INFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/'\"]+@")
_SECRET_QUERY = re.compile(
    r"([?&;][^=&\s]*(?:sig|signature|token|key|password|passwd|secret|credential)[^=&\s]*=)[^&\s'\")]+",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(r"^(?:MLFLOW|AWS|AZURE|DATABRICKS|GOOGLE)_.*(?:PASSWORD|TOKEN|SECRET|ACCESS_KEY)")
_LINE_LIMIT = 400


def redact(text: object) -> str:
    """Replace user information in URIs, secret query values and known environment secrets by ``***``."""
    out = _USER_INFO.sub(r"\1***@", str(text))
    out = _SECRET_QUERY.sub(r"\1***", out)
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET_NAME.match(name):
            out = out.replace(value, "***")
    return out


def one_line(text: object) -> str:
    """Redacted, on one line, cut where it becomes a dump."""
    line = " ".join(redact(text).split())
    return line if len(line) <= _LINE_LIMIT else line[: _LINE_LIMIT - 1] + "…"
