"""Print pip's constraints for the oldest versions that pyproject.toml admits: every ``name>=X`` as ``name==X``."""

from __future__ import annotations

import re
from pathlib import Path

import tomllib

# What those versions of the dependencies take of their own dependencies without an upper bound, and cannot use today.
COMPANIONS = ("sqlalchemy<2.1",)  # MLflow 3.2 imports a class that 2.1 dropped


def main() -> None:
    """Read pyproject.toml beside this folder."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        name, floor = re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups()
        print(f"{name}=={floor}")
    print("\n".join(COMPANIONS))


if __name__ == "__main__":
    main()
