"""Draft."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint, factor
from mlflow_relabel_audit.curvature.stationary import sigmoid
from mlflow_relabel_audit.flips.gram import GramSums, NormSums, Sums, kernel_norms
from mlflow_relabel_audit.flips.localisation import ROUNDING, LevelBound, RowState, close_box, least_secant
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows

GRAM_ROWS = 4000
UNIT = 2.0**-53
LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SPLIT = 512


@dataclass(frozen=True)
class Rounding:
    form: float
    residual: float
    margin: float


def rounding_terms(problem, rows, point, norms):
    depth = min(rows.n, 8192 + rows.n // 64)
    square = rows.square_norms()
    trace = float(point.diagonal @ square + problem.penalty.sum())
    condition = point.curvature.condition
    if point.curvature.kind == "primal":
        form = rows.p * (depth + rows.p) * UNIT * condition
    elif point.curvature.kind == "dual":
        kernel = 1 + float(point.diagonal @ square) / problem.penalty[: rows.features_in].min(initial=np.inf)
        form = rows.n * (rows.n + rows.p) * UNIT * condition * kernel
    else:
        form = 1e-11 * np.sqrt(condition * rows.p) * 10
    least_eigen = trace / rows.p / (rows.p * condition) if point.curvature.kind=="primal" else problem.penalty[: rows.features_in].min(initial=np.inf)
    gradient = 4.0 * depth * UNIT * float(point.weight @ np.sqrt(square)) / np.sqrt(least_eigen)
    residual = point.stationarity.residual * (1 + form) + gradient
    margin = 4.0 * (rows.p + 3) * UNIT * np.linalg.norm(point.theta) * np.sqrt(trace)
    return Rounding(float(form), float(residual), float(margin))


class Certificate:
    def __init__(self, state, sign, low_load, bounds, rounding, cut):
        self.state, self.sign, self.bounds, self.rounding, self.cut = state, sign, bounds, rounding, cut
        self.levels = tuple(b.k for b in bounds)

    @classmethod
    def prepare(cls, problem, rows, point, *, gram=None, max_level=128, row_norms=None):
        norms = point.curvature.row_norms(rows) if row_norms is None else row_norms
        terms = rounding_terms(problem, rows, point, norms)
        norms = norms * (1 + terms.form)
        load = point.weight
        sign = 2 * rows.y - 1
        state = RowState(point.margin, point.probability, point.weight, load, norms, terms.residual)
        levels = tuple(k for k in LEVELS if k <= min(max_level, rows.n))
        kn = kernel_norms(rows, point.curvature, problem.penalty, norms, terms.form)
        if gram is None:
            gram = rows.n <= GRAM_ROWS
        sums = GramSums(rows, point.curvature, problem.penalty, kn, load, sign, state.extreme, levels, terms.form) if gram else NormSums(kn, load, sign, levels)
        spread = sums.spread(state.extreme)

        def secant(rho):
            q = least_secant(state, rho)
            ratio = float(np.min(np.divide(q, point.diagonal, out=np.ones_like(q), where=point.diagonal > 0)))
            return factor(rows, q, problem.penalty, "primal").row_norms(rows) * (1 + terms.form/ratio), ratio
        bounds = []
        start = None
        prev = 0
        for k in levels:
            if bounds: start = bounds[-1].rho * (k / bounds[-1].k) ** .7
            s = sums.at(k)
            b = close_box(s, spread, state, k)
            how = "A"
            if b is None and point.curvature.kind == "primal":
                b = close_box(s, spread, state, k, start, secant); how = "B"
            if b is None:
                print("stop at", k); break
            print(k, how, "rho", b.rho.max(), "med", np.median(b.rho), "reach", s.reach.max(), "E", b.energy.total, "off", b.energy.offset)
            bounds.append(b)
        return cls(state, sign, load, bounds, terms, problem.cut)

    def lower_bounds(self, margin, response, response_error, norms):
        """response oriented toward the flip."""
        out = np.ones(len(margin), dtype=np.int64)
        scale, row = response_error
        st = self.state
        for t in range(len(margin)):
            P = response[t].astype(np.float64)
            goal = abs(margin[t])
            err = scale[t] * row + self.rounding.form * norms[t] * st.norm
            fixed = norms[t] * (st.residual + self.rounding.margin) + 4 * UNIT * (abs(self.cut) + goal)
            g = -self.sign * st.load * P + st.load * err
            lo, hi, best = 0, len(self.bounds) - 1, 0
            while lo <= hi:
                mid = (lo + hi) // 2
                k = self._certified(self.bounds[mid], g, P, err, goal - fixed)
                best = max(best, k)
                if k >= self.bounds[mid].k:
                    lo = mid + 1
                else:
                    hi = mid - 1
            out[t] = best + 1
        return out

    def _certified(self, b, g, P, err, goal):
        a = -P
        w = np.maximum(np.maximum(a * b.high, a * b.low), 0) + self.state.extreme * err
        n = len(w)
        if n > SPLIT:
            idx = np.argpartition(w, n - SPLIT)[n - SPLIT:]
        else:
            idx = np.arange(n)
        idx = idx[np.argsort(-w[idx])]
        ws, cs = w[idx], np.cumsum(b.change[idx])
        E = b.energy.total
        best = 0
        k = min(b.k, n)
        for _ in range(3):
            m = min(np.searchsorted(cs, E), len(ws) - 1)
            tau = ws[m]
            rest = tau * b.energy.offset + np.maximum(ws[:m] - tau, 0) @ b.change[idx[:m]]
            v = g + tau * b.energy.charge
            part = np.argpartition(v, n - k)[n - k:] if k < n else np.arange(n)
            part = part[np.argsort(-v[part])]
            cum = (np.cumsum(np.maximum(v[part], 0)) + rest) * (1 + 1e-9)
            c = int(np.searchsorted(cum, goal))
            best = max(best, c)
            if c >= k: break
            E = b.energy.offset + b.energy.charge[part[:c + 1]].sum()
        return best
