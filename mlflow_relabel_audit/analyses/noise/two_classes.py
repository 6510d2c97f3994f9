"""What the scores of training labels rest on, of two classes.

Out-of-fold margins (`foldout`), with learners of other kinds beside them where that helps (`learners`, `committee`)
and the labels of identical rows (`copies`), say what the rest of the data thinks of a row; the label curve
(`label_curve`) turns a margin and a given label into the probability that the label is wrong. Evaluation rows, whose
labels are taken to be right, are learned from beside the training rows and by themselves, say how far each learner is
to be heard, and pin the rates down. Without them, labels of a table may be wrong together in one region (`region`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mlflow_relabel_audit.analyses.findings import Finding
from mlflow_relabel_audit.analyses.noise.committee import Stack, agreed, committee, say_of_stacks, stacked, standing
from mlflow_relabel_audit.analyses.noise.copies import pool_copies
from mlflow_relabel_audit.analyses.noise.foldout import MIN_CLASS_ROWS, FoldOut, fold_out, reweighted
from mlflow_relabel_audit.analyses.noise.label_curve import LabelCurve, blended, fit_label_curve, weighted_quantile
from mlflow_relabel_audit.analyses.noise.learners import STUMPS, other_learners, table_of
from mlflow_relabel_audit.analyses.noise.region import Region, disputed_region
from mlflow_relabel_audit.analyses.noise.verdict import NO_NOISE_RATE
from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray, Problem
from mlflow_relabel_audit.rows import Rows, joined

BLIND_POWER = 0.1
"""Power of the likelihood in the scores where there are more features than rows, and no evaluation rows: margins of
rare words bend the clean curve, which passes for noise in one class unless the likelihood is held back."""
LINEAR, OF_EVALUATION = "linear model", " of evaluation rows"


@dataclass(frozen=True)
class LabelEvidence:
    """How likely each training label is wrong, and from what.

    Attributes
    ----------
    wrong : ndarray of shape (n,)
        probability that the label is wrong.
    rate : tuple of three floats
        share of wrong labels, with a 95 % interval.
    margin : ndarray of shape (n,)
        that the rates are read off: of the second stack, of the only one with identical rows heard, or without.
    curve : LabelCurve
        of that margin, with the weights of the first stack's curve blended in: the rates are read off it.
    out : FoldOut
        margins of the audited kind of model alone, of the training rows and then of the evaluation rows.
    stacks : tuple of Stack
        of learners, over the same rows, each with one more of another kind.
    label : ndarray of shape (n,)
        as given, 0 or 1.
    alone : float
        log-loss a row of the audited kind of model alone.
    region : Region or None
        of a table in which labels disagree more often than expected; not sought where there are evaluation rows.
    """

    wrong: FloatArray
    rate: tuple[float, float, float]
    margin: FloatArray
    curve: LabelCurve
    out: FoldOut
    stacks: tuple[Stack, ...]
    label: FloatArray = field(repr=False)
    alone: float = field(default=np.nan)
    region: Region | None = field(default=None)

    @property
    def suggested(self) -> FloatArray:
        """The other class, shape (n,)."""
        return 1.0 - self.label

    @property
    def unseen(self) -> FloatArray:
        """Probability of class 1 by models of the audited kind that did not see the row, shape (n,)."""
        return sigmoid(self.out.margin[: len(self.label)])

    @property
    def against(self) -> FloatArray:
        """The margin against the label, shape (n,)."""
        return np.where(self.label > 0.5, -self.margin, self.margin)

    @property
    def sparing(self) -> bool:
        """No more rows are flagged than a verdict of no noise has room for."""
        return True

    @property
    def others(self) -> tuple[str, ...]:
        """Learners of other kinds that are heard, in any stack."""
        heard = dict.fromkeys(name.removesuffix(OF_EVALUATION) for stack in self.stacks for name in stack.heard)
        return tuple(name for name in heard if name != LINEAR)

    def findings(self, problem: Problem, rows: Rows) -> list[Finding]:
        """Which way the errors lean, what makes the rate uncertain, and who is heard."""
        found: list[Finding] = []
        curve = self.curve
        dirtier = float(curve.weight @ (curve.rate0 > curve.rate1))
        if self.rate[1] >= NO_NOISE_RATE and max(dirtier, 1.0 - dirtier) > 0.95:
            rates = float(curve.weight @ curve.rate0), float(curve.weight @ curve.rate1)
            worse = int(dirtier > 0.5)
            given, other = problem.classes[worse], problem.classes[1 - worse]
            found.append(
                Finding(
                    "N004",
                    "warning",
                    f"The errors lean one way: {rates[1 - worse]:.1%} of the true {other!s} are labelled "
                    f"{given!s}, {rates[worse]:.1%} of the true {given!s} are labelled {other!s}.",
                )
            )
        if rows.p > rows.n:
            found.append(
                Finding(
                    "N006",
                    "info",
                    f"More features ({rows.p}) than rows ({rows.n}): the margins' own errors can pass for wrong "
                    "labels, and the rate tends to come out too high, by about 5 points.",
                )
            )
        alone, best = self.alone, self.stacks[-1]
        names = [name if name.startswith("boosted") else f"a {name}" for name in self.others]
        others = " and ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])
        if others:
            those = "them" if len(self.others) > 1 else "it"
            found.append(
                Finding(
                    "N008",
                    "info",
                    f"The ranking also hears {others}: with {those} held-out labels are predicted better than by "
                    f"models of the audited kind alone (log-loss {alone:.3f} to {best.loss:.3f} a row).",
                )
            )
        return found if self.region is None else [*found, self.region.finding()]


def label_evidence(
    problem: Problem, rows: Rows, point: StationaryPoint, clean_rows: Rows | None = None, *, seed: int = 0
) -> LabelEvidence:
    """Score every training label: margins out of fold, the label curve, and both again with suspects weighed down.

    Parameters
    ----------
    problem, rows, point
        the objective, the n training rows and the minimiser.
    clean_rows : Rows, optional
        evaluation rows with their own labels, which are taken to be right. They are dealt into folds and learned from
        like the training rows, and by themselves.
    seed : int
        of the deals into folds.
    """
    everything, start = rows, point
    if clean_rows is not None:
        clean_rows.base_weight = np.full(clean_rows.n, rows.base_weight.mean())
        everything = joined(rows, clean_rows)
        start = _extended(point, clean_rows)
    out = fold_out(problem, everything, start, seed=seed)
    right = _of_evaluation(problem, rows, everything, start, out, seed)
    others = other_learners(everything, everything.base_weight, seed=seed, deals=out.deals)
    region = _region(rows, out, others, seed) if clean_rows is None else None
    found = _weighed(rows, everything, out, right, others, everything.base_weight, region)
    if rows.n < rows.p:  # with fewer rows than features a second round costs more than it brings
        return found
    doubt = np.zeros(everything.n)
    doubt[: rows.n] = found.wrong
    out = reweighted(problem, everything, start, out, doubt, seed=seed)
    trust = everything.base_weight * (1.0 - doubt)
    others = other_learners(everything, trust, seed=seed, deals=out.deals)
    return _weighed(rows, everything, out, right, others, trust, region)


def _extended(point: StationaryPoint, clean_rows: Rows) -> StationaryPoint:
    """The minimiser with the weights of evaluation rows after those of the training rows."""
    margin = clean_rows.margins(point.theta)
    probability, weight = sigmoid(margin), clean_rows.base_weight
    return replace(
        point,
        margin=np.concatenate([point.margin, margin]),
        probability=np.concatenate([point.probability, probability]),
        weight=np.concatenate([point.weight, weight]),
        diagonal=np.concatenate([point.diagonal, weight * probability * (1.0 - probability)]),
    )


def _of_evaluation(
    problem: Problem, rows: Rows, everything: Rows, start: StationaryPoint, out: FoldOut, seed: int
) -> dict[str, FloatArray]:
    """Log-odds by learners of evaluation rows alone, which no wrong label has taught; none where those are few."""
    label = everything.y[rows.n :]
    if min(label.sum(), len(label) - label.sum()) < MIN_CLASS_ROWS:
        return {}
    unseen = np.zeros(everything.n)
    unseen[: rows.n] = 1.0
    linear = reweighted(problem, everything, start, out, unseen, seed=seed).margin
    trust = everything.base_weight * (1.0 - unseen)
    others = other_learners(everything, trust, right=True, seed=seed, deals=out.deals)
    return {name + OF_EVALUATION: voice for name, voice in {LINEAR: linear, **others}.items()}


def _region(rows: Rows, out: FoldOut, others: dict[str, FloatArray], seed: int) -> Region | None:
    """Where labels of a table disagree in one region; None where they do not, and of other rows than tables."""
    table = table_of(rows)
    if table is None:
        return None
    label, weight = rows.y, rows.base_weight
    additive = stacked({LINEAR: out.margin, STUMPS: others[STUMPS]}, label, weight)
    learnt = additive.loss - stacked({LINEAR: out.margin, **others}, label, weight).loss
    expected = _curve_of(rows, rows, additive.margin).probability_given(additive.margin)
    against = np.where(label > 0.5, -out.margin, out.margin)
    return disputed_region(table, expected, against, label, weight, learnt, seed=seed)


def _weighed(
    rows: Rows,
    everything: Rows,
    out: FoldOut,
    right: dict[str, FloatArray],
    others: dict[str, FloatArray],
    trust: FloatArray,
    region: Region | None,
) -> LabelEvidence:
    """One round of evidence: the committee, identical rows and the label curves, on top of the margins."""
    say = say_of_stacks(rows.n, trust)
    stacks, alone = committee({LINEAR: out.margin, **right}, others, everything.y, say)
    margins, losses = [stack.margin for stack in stacks], [stack.loss for stack in stacks]
    pooled = pool_copies(everything, margins[-1], say).margin
    if pooled is not margins[-1]:  # copies may be wrong together: they have a voice, too, not the last word
        margins.append(pooled)
        losses.append(stacked({"copies": pooled}, everything.y, say).loss)
    curves = [_curve_of(rows, everything, margin) for margin in margins]
    margins, told = [margin[: rows.n] for margin in margins], everything.n > rows.n
    doubts = [curve.probability_wrong(margin, rows.y) for margin, curve in zip(margins, curves, strict=True)]
    places = [curve.places(margin, rows.y, told=told) for margin, curve in zip(margins, curves, strict=True)]
    standings = standing(losses, everything.y, say)
    if region is not None:
        places.append(region.place)
        standings = np.append(standings * (1.0 - region.say) / standings.sum(), region.say)
    wrong = agreed(doubts, places, standings)
    margin, curve = margins[0], curves[0]
    if len(curves) > 1:
        # what another learner has learned hides a ceiling in the given labels: it alone does not tell the rates
        margin, curve = margins[1], blended(curves[1], curves[0])
    return LabelEvidence(wrong, noise_rate(curve, margin, rows.y), margin, curve, out, stacks, rows.y, alone, region)


def _curve_of(rows: Rows, everything: Rows, margin: FloatArray) -> LabelCurve:
    """The label curve of training rows' margins, with evaluation rows' where there are some."""
    n = rows.n
    clean = everything.n > n
    power = BLIND_POWER if rows.p > n and not clean else 1.0
    clean_margin, clean_label = (margin[n:], everything.y[n:]) if clean else (None, None)
    return fit_label_curve(margin[:n], rows.y, clean_margin, clean_label, power)


def noise_rate(curve: LabelCurve, margin: FloatArray, label: FloatArray) -> tuple[float, float, float]:
    """Share of wrong labels: posterior mean, then 2.5 % and 97.5 % quantiles of the tempered posterior."""
    share = curve.mean_wrong(margin, label)
    known = np.isfinite(share)
    estimate = float(curve.weight[known] @ share[known] / curve.weight[known].sum())
    low, high = (weighted_quantile(share[known], curve.wide_weight[known], at) for at in (0.025, 0.975))
    return estimate, min(low, estimate), max(high, estimate)
