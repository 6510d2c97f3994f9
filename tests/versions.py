"""What tests have to say in another way to the older libraries that pyproject.toml admits."""

from __future__ import annotations

from typing import Any

import sklearn

SKLEARN = tuple(map(int, sklearn.__version__.split(".")[:2]))


def elastic(l1_ratio: float) -> dict[str, Any]:
    """Arguments of a LogisticRegression with that share of l1 in its penalty, above 0."""
    if SKLEARN >= (1, 8):
        return {"l1_ratio": l1_ratio}
    return {"penalty": "l1"} if l1_ratio == 1 else {"penalty": "elasticnet", "l1_ratio": l1_ratio}
