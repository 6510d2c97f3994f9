"""Everything a change has to pass, in order of speed; the first failure stops it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKS = (
    ("lint", ("ruff", "check", ".")),
    ("format", ("ruff", "format", "--check", ".")),
    ("types", ("mypy",)),
    ("tests", ("pytest", "--durations=10")),
)


def main() -> int:
    began = time.monotonic()
    # products in tests are small: BLAS threads would only wait for one another, and for whatever else runs here
    environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
    for name, (tool, *arguments) in CHECKS:
        print(f"== {name}: {tool} {' '.join(arguments)}", flush=True)
        status = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, env=environment).returncode
        if status != 0:
            print(f"\n{name} failed: {tool} exited with {status}")
            return status
    command = Path(sys.executable).parent / "mlflow-relabel"
    shown = command.relative_to(ROOT) if command.is_relative_to(ROOT) else command
    print(f"\nEverything passed in {time.monotonic() - began:.0f} seconds.")
    print(f"Next: see it work with   {shown} demo")
    print("      the screenshots of the reports are in test-output/, the measurements in benchmarks/RESULTS.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
