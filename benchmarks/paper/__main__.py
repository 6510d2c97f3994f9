"""Rebuild the tables and figures of Yang, Xu and Yu (2024) beside the paper's own figures.

    python -m benchmarks.paper --data DIR --out DIR [--quick] [--set NAME]... [--experiment NAME]... [--penalty tuned]
    python -m benchmarks.paper --data DIR --out DIR --set NAME --text text --l2 10 [--threshold 0.5]

DIR of ``--data`` holds ``NAME_train.parquet`` and ``NAME_test.parquet`` with a column ``label`` of 0 and 1; for
embeddings ``NAME_train_minilm.npz`` and for word averages ``NAME_train_wordavg.npz`` (and ``_test_``), key ``X``.
Without ``--set``, the paper's sets. ``--set sst`` is all its features, ``--set sst-embeddings`` one of them; any
other name is a pair of such files, a table unless ``--text`` names its text.

Writes ``results/`` (one JSON for each set, experiment, penalty and seed; what is there is not run again),
``figures/`` and ``paper.md`` into the folder of ``--out``. ``--render`` only draws and tabulates what is there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.paper import pictures, report
from benchmarks.paper.bench import FULL, QUICK
from benchmarks.paper.catalogue import chosen
from benchmarks.paper.plan import BOTH, NAMES, PAPERS, Runner
from benchmarks.paper.store import Store


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for results, figures and paper.md")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="NAME", help="may be repeated")
    parser.add_argument("--text", metavar="COLUMN", help="the added set's text; without it the set is a table")
    parser.add_argument("--l2", type=float, help="the added set's penalty, 1 / C (default 1)")
    parser.add_argument("--threshold", type=float, help="of the added set (default 0.5)")
    parser.add_argument("--experiment", dest="experiments", action="append", choices=NAMES, help="may be repeated")
    parser.add_argument("--penalty", choices=BOTH, help="only this one; by default both, with --quick the paper's")
    parser.add_argument("--quick", action="store_true", help="few predictions, 1,000 words: five minutes for all sets")
    parser.add_argument("--render", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    if options.l2 is not None and not options.l2 > 0:
        parser.error(f"--l2: got {options.l2:g}; pass a positive penalty")
    if options.threshold is not None and not 0 < options.threshold < 1:
        parser.error(f"--threshold: got {options.threshold:g}; pass a probability between 0 and 1")
    store = Store(options.out / "results")
    failed: list[str] = []
    if not options.render:
        entries, absent = chosen(options.data, options.sets, options.text, options.l2, options.threshold)
        for line in absent:
            print(f"left out: {line}", file=sys.stderr)
        if not entries:
            print(f"--data: no set to run in {options.data}; see --help for the files that are looked for",
                  file=sys.stderr)  # fmt: skip
            return 2
        sizes, penalties = (QUICK, PAPERS) if options.quick else (FULL, BOTH)
        runner = Runner(store, options.data, sizes, (options.penalty,) if options.penalty else penalties)
        failed = runner.run(entries, tuple(options.experiments or NAMES))
    figures = pictures.draw_all(store, options.out / "figures")
    page = options.out / "paper.md"
    page.write_text(report.page(store, [path for path in figures if path.suffix == ".png"]), encoding="utf-8")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(f"{page}: tables; {options.out / 'figures'}: {len(figures)} files")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
