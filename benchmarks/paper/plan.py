"""What is run on which set, at which penalties, from which seeds; and the running of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.paper import cost, flips, noisy, orders, tag
from benchmarks.paper.bench import Bench, Sizes
from benchmarks.paper.catalogue import Entry, tune
from benchmarks.paper.store import Key, Store
from benchmarks.sets import Set

BOTH, PAPERS = ("paper", "tuned"), ("paper",)
RESTS_ON = {
    "k": ("predictions", "confirmed"),
    "published": ("refitted",),
    "orders": ("ordered",),
    "mislabelled": ("errors",),
    "noise-curve": ("curve", "draws"),
    "removal": ("removed",),
    "tag": ("errors",),
    "cost": ("timed", "timed_rows"),
}
"""The sizes each experiment's result depends on, beside those all do."""
OF_ALL = ("wide", "words")


@dataclass(frozen=True)
class Experiment:
    """One experiment of the paper."""

    name: str
    shown: str
    run: Callable[[Bench], dict[str, Any]]
    penalties: tuple[str, ...] = BOTH
    seeded: bool = False
    fits: Callable[[Entry], bool] = lambda entry: True

    def seeds(self, sizes: Sizes) -> range:
        return range(sizes.seeds if self.seeded else 1)


EXPERIMENTS = (
    Experiment("k", "Table 2, Figures 3-5, 7-10", flips.sizes),
    Experiment("published", "Table 2", flips.published),
    Experiment("orders", "Figure 2", orders.orders),
    Experiment(
        "mislabelled",
        "Table 1",
        noisy.mislabelled,
        PAPERS,
        seeded=True,
        fits=lambda entry: entry.data == "hate" or entry.added,
    ),
    Experiment("noise-curve", "Figure 6", noisy.curve),
    Experiment("removal", "Tables 4, 7", noisy.removal, PAPERS),
    Experiment("tag", "Section 3.4", tag.tag, PAPERS, seeded=True, fits=lambda entry: entry.features == "table"),
    Experiment("cost", "Tables 3, 8", cost.cost, PAPERS),
)
NAMES = tuple(experiment.name for experiment in EXPERIMENTS)


class Meter:
    """Says on stderr what runs and how far it is; a line that is drawn over on a terminal, plain lines else."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.terminal = sys.stderr.isatty()
        self.began = time.monotonic()

    def start(self, label: str) -> None:
        self.done += 1
        self.label = f"[{self.done}/{self.total}] {label}"
        self.since = self.shown = time.monotonic()

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.terminal and now - self.shown > 0.2:
            self.shown = now
            print(f"\r\033[K{self.label}  {100 * done // max(total, 1)} %", end="", file=sys.stderr, flush=True)

    def end(self, outcome: str = "") -> None:
        now = time.monotonic()
        text = outcome or f"{now - self.since:.1f} s"
        start = "\r\033[K" if self.terminal else ""
        print(f"{start}{self.label}  {text}  ({(now - self.began) / 60:.1f} min)", file=sys.stderr, flush=True)


class Runner:
    """Runs what a store does not hold yet."""

    def __init__(self, store: Store, folder: Path, sizes: Sizes, penalties: tuple[str, ...] = BOTH) -> None:
        self.store, self.folder, self.sizes, self.penalties = store, folder, sizes, penalties

    def run(self, entries: list[Entry], names: tuple[str, ...]) -> list[str]:
        """Run the experiments of these names on these sets, set by set; a line for each that failed."""
        plan = {entry: list(self.steps(entry, names)) for entry in entries}
        meter = Meter(sum(len(steps) for steps in plan.values()))
        failed: list[str] = []
        for entry, steps in plan.items():
            held: dict[str, Bench] = {}
            for experiment, penalty, seed in steps:
                key = Key(entry.name, experiment.name, penalty, seed)
                seeds = f", seed {seed}" if experiment.seeded else ""
                meter.start(f"{entry.name}, {penalty} penalty: {experiment.name} ({experiment.shown}){seeds}")
                settings = self.settings(entry, experiment, penalty)
                if settings is not None and self.store.read(key, settings) is not None:
                    meter.end("held")
                    continue
                try:
                    if penalty not in held:
                        held[penalty] = self.bench(entry, penalty, held, meter)
                    bench = replace(held[penalty], seed=seed) if seed else held[penalty]
                    result = experiment.run(bench)
                except Exception as error:  # one experiment that fails must not lose the others
                    failed.append(f"{key.set}, {penalty} penalty, {key.experiment}: {type(error).__name__}: {error}")
                    meter.end("failed")
                    continue
                settings = self.settings(entry, experiment, penalty)
                self.store.write(key, settings or {}, result)
                meter.end()
        return failed

    def steps(self, entry: Entry, names: tuple[str, ...]) -> Iterator[tuple[Experiment, str, int]]:
        for penalty in self.penalties:
            for experiment in EXPERIMENTS:
                if experiment.name in names and penalty in experiment.penalties and experiment.fits(entry):
                    for seed in experiment.seeds(self.sizes):
                        yield experiment, penalty, seed

    def settings(self, entry: Entry, experiment: Experiment, penalty: str) -> dict[str, Any] | None:
        """All that a result depends on; None while the tuned penalty is not known."""
        l2 = entry.l2 if penalty == "paper" else self.tuned(entry)
        sizes = asdict(self.sizes)
        rests = {name: sizes[name] for name in (*RESTS_ON[experiment.name], *OF_ALL)}
        described = {"features": entry.features, "column": entry.column, "threshold": entry.threshold}
        return None if l2 is None else {"l2": l2, **described, **rests}

    def searched(self, entry: Entry) -> dict[str, Any]:
        """What the tuned penalty depends on."""
        return {"features": entry.features, "column": entry.column, "words": self.sizes.words}

    def tuned(self, entry: Entry) -> float | None:
        """The tuned penalty, None where it has not been looked for."""
        found = self.store.read(Key(entry.name, "penalty", "tuned"), self.searched(entry))
        return None if found is None else float(found["l2"])

    def bench(self, entry: Entry, penalty: str, held: dict[str, Bench], meter: Meter) -> Bench:
        data: Set = next(iter(held.values())).data if held else entry.load(self.folder, self.sizes.words)
        if penalty == "tuned":
            l2 = self.tuned(entry)
            if l2 is None:
                l2, losses = tune(data)
                key = Key(entry.name, "penalty", "tuned")
                self.store.write(key, self.searched(entry), {"l2": l2, "losses": losses})
            data = replace(data, l2=l2)
        return Bench(entry, self.folder, data, self.sizes, progress=meter.progress)
