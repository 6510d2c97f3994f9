"""The audit of one fitted classifier, on arrays, frames and sparse matrices, without a server."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mlflow_relabel_audit import inputs
from mlflow_relabel_audit.analyses.bias import BiasResult, bias_audit
from mlflow_relabel_audit.analyses.checkpoint import Checkpoint
from mlflow_relabel_audit.analyses.contest import ContestResult, contest
from mlflow_relabel_audit.analyses.decision import answer
from mlflow_relabel_audit.analyses.flip_table import FlipTable
from mlflow_relabel_audit.analyses.noise.audit import NoiseResult, noise_audit
from mlflow_relabel_audit.analyses.noise.correction import Correction, correction, not_measured
from mlflow_relabel_audit.analyses.robustness import Fitted, RobustnessResult, Search, robustness
from mlflow_relabel_audit.curvature import Curvature, Stationarity, save_hessian
from mlflow_relabel_audit.curvature.reuse import Stored, fingerprint, stationary_point
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.certificate.bound import Certificate
from mlflow_relabel_audit.flips.rankings import Ranking, direction_norms, rank
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.flips.removal.sets import removal_frame, removal_sets
from mlflow_relabel_audit.problem import FloatArray, read_problem, supervised_steps, unwrap
from mlflow_relabel_audit.rows import Progress, Rows


class Auditor:
    """Finds the training labels that, relabelled before training, would flip a prediction.

    Parameters
    ----------
    estimator : LogisticRegression, LogisticRegressionCV or Pipeline
        fitted; l2 penalty (any solver) or none with full rank; a Pipeline has to end in one of the two.
    X_train : array, frame, series or CSR matrix of n rows, or a ParquetSource
        what the estimator's fit took.
    y_train : array-like of shape (n,)
        the labels it was fitted on, as they were given to fit.
    sample_weight : array-like of shape (n,), optional
        the weights given to fit.
    threshold : float
        probability above which a row is predicted to be of ``classes_[1]``.
    row_ids : sequence of length n, optional
        names of the training rows in every table; positions by default.
    curvature : {"primal", "dual", "cg"}, optional
        force a form of the Hessian; the cheapest is chosen by default.
    hessian : Path, or callable from a fingerprint to a Path or None, optional
        a folder with ``hessian.npz`` and ``hessian.json`` of an earlier audit of the same model and data; used
        where its fingerprint fits, else computed again (with a warning).
    memory_limit : int or str, optional
        bytes, or a size like ``"1GiB"``, that training rows may occupy at once: they are then transformed part by
        part, kept in a private scratch folder and read back block by block. Results are the same.
    dask : str or distributed.Client, optional
        ``"tcp://host:port"`` of a scheduler, or ``"local"``: its workers then read, transform and keep the training
        rows, and every pass over them runs there. Results are the same. Needs the extra ``dask``.
    progress : callable, optional
        ``progress(done, total, stage)``, told while rows are read in parts (stage ``"reading rows"``), and of every
        pass over them that takes longer than a second (stage ``"rows"``; it ends with ``done == total``).

    Raises
    ------
    UnsupportedModelError
        The estimator's objective is not one this audit covers; the message says what to do.
    RequestError
        Rows, labels, weights or ids do not fit one another, or hold NaN.
    DataMismatchError
        The rows are not those the model was trained on (see `stationarity`).
    SingularHessianError
        The Hessian cannot be inverted.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X[:400], y[:400])
    >>> result = Auditor(model, X[:400], y[:400]).robustness(X[400:], y[400:])
    >>> bool((result.predictions["status"] == "verified").all())
    True
    """

    def __init__(
        self,
        estimator: Any,
        X_train: Any,
        y_train: Any,
        sample_weight: Any = None,
        threshold: float = 0.5,
        row_ids: Any = None,
        *,
        curvature: str | None = None,
        hessian: Stored | None = None,
        memory_limit: int | str | None = None,
        dask: Any = None,
        progress: Progress | None = None,
    ) -> None:
        self.problem = read_problem(estimator, threshold=threshold)
        _, self._transformer = unwrap(estimator)
        if self._transformer is not None and (steps := supervised_steps(self._transformer)):
            warnings.warn(
                f"steps fitted on the labels are taken as they are: {', '.join(steps)}; relabelling would change "
                "their output too, which this audit does not follow",
                UserWarning,
                stacklevel=2,
            )
        limit = None if memory_limit is None else inputs.byte_size(memory_limit)
        self.rows = inputs.training_rows(
            self.problem, self._transformer, X_train, y_train, sample_weight, limit, dask, progress
        )
        self.row_ids = inputs.row_ids(row_ids, self.rows.n, "training rows")
        self.point, self.hessian_cached = stationary_point(self.problem, self.rows, hessian, curvature)

    @classmethod
    def from_parquet(cls, estimator: Any, path: str | Path, target: str, **options: Any) -> Auditor:
        """Audit a model on training rows in a Parquet file, or in a folder of them.

        Parameters
        ----------
        estimator, path, target
            the model, a file or folder (or any address pyarrow reads), and the column of its labels.
        features, text, weight_column, id_column : optional
            other columns, see `inputs.parquet_rows`.
        options
            of the constructor, ``memory_limit`` and ``dask`` among them.
        """
        named = {name: options.pop(name, None) for name in ("features", "text", "weight_column", "id_column")}
        X, y, weight, ids = inputs.parquet_rows(estimator, path, target, **named)
        return cls(estimator, X, y, sample_weight=weight, row_ids=ids, **options)

    # -- what was fitted -------------------------------------------------------------------------------------

    @property
    def curvature(self) -> Curvature:
        """The factored Hessian."""
        return self.point.curvature

    @property
    def stationarity(self) -> Stationarity:
        """How nearly the logged coefficients minimise the objective on these rows."""
        return self.point.stationarity

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model's coefficients and objective, the training rows, and the package version."""
        return fingerprint(self.problem, self.rows)

    def save_hessian(self, directory: Path) -> list[Path]:
        """Write ``hessian.npz`` and ``hessian.json`` into an existing folder; returns their paths."""
        return save_hessian(self.point, directory, self.fingerprint)

    @functools.cached_property
    def fitted(self) -> Fitted:
        """What the analyses ask of the fitted model."""
        effect = RelabelEffect.at(self.problem, self.rows, self.point)
        norms = self.curvature.row_norms(self.rows)
        return Fitted(self.problem, self.rows, self.point, effect, norms, self.row_ids)

    @functools.cached_property
    def certified(self) -> Fitted:
        """`fitted`, with the certificate prepared: from the rows' own inner products where there are few."""
        return self._certified(None)

    @functools.cached_property
    def certified_by_gram(self) -> Fitted:
        """`fitted`, with the tighter certificate that sums the rows' own inner products, in time n^2 p, once."""
        return self._certified(True)

    def _certified(self, gram: bool | None) -> Fitted:
        certificate = None
        if self.rows.outputs == 1:
            norms = self.fitted.row_norms
            certificate = Certificate.prepare(self.problem, self.rows, self.point, row_norms=norms, gram=gram)
        return dataclasses.replace(self.fitted, certificate=certificate, certified=True)

    # -- the analyses ----------------------------------------------------------------------------------------

    def robustness(
        self,
        X_eval: Any,
        y_eval: Any = None,
        verify: bool = True,
        search: Search = "prefix",
        certify: bool | Literal["gram"] = True,
        row_ids: Any = None,
        progress: Progress | None = None,
        deadline: Callable[[], bool] | None = None,
        checkpoint: Path | None = None,
    ) -> RobustnessResult:
        """Find the smallest set of training labels that flips each prediction.

        Parameters
        ----------
        X_eval : array, frame, series or CSR matrix of T rows, or a ParquetSource
            as the estimator's predict takes them. Under a memory limit, or with Dask, they are transformed a block at
            a time.
        y_eval : array-like of shape (T,), optional
            their true labels, for the columns ``label`` and ``correct``.
        verify : bool
            prove by refits that k labels flip the prediction and k - 1 of the same order do not.
        search : {"prefix", "adaptive"}
            ``"adaptive"`` tries to shrink each set by ranking again at its refit; never larger.
        certify : bool or "gram"
            bound k from below (``k_lower``); ``"gram"`` spends n^2 p once to bound it more tightly, which is done
            anyway up to 4,000 rows.
        row_ids : sequence of length T, optional
            positions by default.
        progress : callable, optional
            ``progress(done, total, stage)``, told of the flip sets; it takes the place of the constructor's meanwhile.
        deadline : callable, optional
            returns True once the time allowed is over.
        checkpoint : Path, optional
            a folder for finished predictions: after an interruption the same call goes on where it stopped. It is
            removed once all are done.

        Returns
        -------
        RobustnessResult
        """
        # where training rows are not one array here, the others are not made one either
        evaluation = inputs.evaluation_rows(self.problem, self._transformer, X_eval, passing=not self.rows.held)
        labels = None if y_eval is None else inputs.evaluation_labels(self.problem, y_eval, evaluation.n)
        if certify not in (True, False, "gram"):
            raise RequestError(f"certify: got {certify!r}; pass True, False or 'gram'")
        ids = inputs.row_ids(row_ids, evaluation.n, "evaluation rows")
        asked = (verify, search, certify, ids, labels)
        with self.rows.telling(progress) as told, evaluation.telling(told):
            certified = self.certified_by_gram if certify == "gram" else self.certified if certify else self.fitted
            kept = None if checkpoint is None else Checkpoint(checkpoint, self._question(evaluation, *asked))
            found = robustness(
                certified,
                evaluation,
                labels,
                row_ids=ids,
                verify=verify,
                search=search,
                progress=told,
                deadline=deadline,
                checkpoint=kept,
            )
        found.sets.keep(move=not found.stopped)
        if kept is not None and not found.stopped:
            kept.drop()
        return found

    def _question(self, evaluation: Rows, *asked: Any) -> tuple[Any, ...]:
        """All that the predictions of evaluation rows depend on."""
        return (self.fingerprint, self.problem.threshold, self.row_ids, evaluation.digests(), *asked)

    def contest(
        self, x: Any, removal: bool = True, *, want: Any = None, row_id: Any = 0, label: Any = None
    ) -> ContestResult:
        """Lay out one decision: the labels it rests on, what each moves, and removal beside relabelling.

        Parameters
        ----------
        x : one row, as the estimator's predict takes it
            a 1-d array of features, or any table of one row.
        removal : bool
            also find training rows whose removal flips the decision; of two classes only.
        want : optional
            the class that the set must make the prediction; by default any other than the predicted one.
        row_id, label : optional
            the row's name and its true label.

        Returns
        -------
        ContestResult

        Raises
        ------
        RequestError
            ``want`` is not a class of the model, or is what is predicted already.
        """
        evaluation = self.evaluation_rows(inputs.one_row(x, self._transformer is not None))
        if label is not None:
            self.problem.encode(np.asarray([label]))
        found = answer(self.certified, evaluation, want)
        return contest(
            self.problem,
            self.rows,
            self.point,
            inputs.only_row(evaluation),
            flip=found.flip,
            k_lower=found.k_lower,
            k_paper=found.k_paper,
            k_estimate=found.k_estimate,
            row_id=row_id,
            label=label,
            train_ids=self.row_ids,
            row_norms=self.fitted.row_norms,
            removal=removal,
            want=found.want,
            any_change=want is None,
        )

    def rank(self, x: Any, method: str = "ip-relabel", *, seed: int = 0) -> Ranking:
        """Rank the training rows for one prediction; see `flips.rankings.rank` for the methods."""
        evaluation = self.evaluation_rows(inputs.one_row(x, self._transformer is not None))
        return rank(
            self.problem, self.rows, self.point, inputs.only_row(evaluation), method=method, seed=seed,
            norms=self._direction_norms if method == "rif" else None,
        )  # fmt: skip

    @functools.cached_property
    def _direction_norms(self) -> FloatArray:
        return direction_norms(self.rows, self.point)

    def removal(
        self, X_eval: Any, algorithm: int = 1, *, verify: bool = True, search: bool = False, row_ids: Any = None
    ) -> pd.DataFrame:
        """Training rows whose removal flips each prediction.

        Parameters
        ----------
        X_eval : T rows, as the estimator's predict takes them
        algorithm : {1, 2}
            of Yang, Jain and Wallace (2023).
        verify : bool
            refit without each set.
        search : bool
            not the published set but the smallest flipping prefix of its order, found by refits.
        row_ids : sequence of length T, optional
        """
        evaluation = self.evaluation_rows(X_eval)
        scale = "margin" if search else "probability"
        sets = removal_sets(
            self.problem, self.rows, self.point, evaluation,
            algorithm=algorithm, verify=verify, search=search, scale=scale,
        )  # fmt: skip
        return removal_frame(
            sets, self.problem, row_ids=inputs.row_ids(row_ids, evaluation.n, "evaluation rows"), train_ids=self.row_ids
        )

    def noise(
        self, X_eval: Any = None, y_eval: Any = None, *, flip_sets: pd.DataFrame | FlipTable | None = None
    ) -> NoiseResult:
        """Which training labels are probably wrong, and how many.

        Parameters
        ----------
        X_eval, y_eval : optional
            evaluation rows whose labels are taken to be right; they pin the rates down.
        flip_sets : DataFrame or FlipTable, optional
            ``flip_sets`` or ``sets`` of `robustness`, for the column ``flip_set_count``.

        Returns
        -------
        NoiseResult
        """
        features = labels = None
        if X_eval is not None and y_eval is not None:
            evaluation = self.evaluation_rows(X_eval)
            features, labels = evaluation.features, self.problem.encode(y_eval)
        counts = None
        if flip_sets is not None:
            table = flip_sets if isinstance(flip_sets, FlipTable) else FlipTable.of(flip_sets)
            counts = table.counts(self.row_ids)
        return noise_audit(
            self.problem, self.rows, self.point, features, labels, row_ids=self.row_ids, flip_counts=counts
        )

    def correction(self, noise: NoiseResult, X_eval: Any, y_eval: Any) -> Correction:
        """What relabelling the suspects buys, beside dropping them and beside doing nothing.

        Parameters
        ----------
        noise : NoiseResult
            of `noise`, of this model.
        X_eval, y_eval : evaluation rows whose labels are taken to be right
            how many suspects to treat is chosen on one half of them and reported on the other.
        """
        if noise.evidence is None:
            return not_measured("What correcting suspects buys is not measured: no label was scored.")
        features, labels = self.evaluation_rows(X_eval).features, self.problem.encode(y_eval)
        return correction(self.problem, self.rows, self.point, features, labels)

    def bias(
        self,
        groups_train: Any,
        X_eval: Any,
        y_eval: Any,
        groups_eval: Any = None,
        *,
        result: RobustnessResult | None = None,
        **options: Any,
    ) -> BiasResult:
        """Whose labels drive whose errors.

        Parameters
        ----------
        groups_train : DataFrame, series or array of n rows
            group attributes of the training rows.
        X_eval, y_eval : T rows and their labels
        groups_eval : as ``groups_train``, T rows, optional
        result : RobustnessResult, optional
            of the same evaluation rows, where it is at hand.
        options
            of `analyses.bias.bias_audit`.

        Returns
        -------
        BiasResult
        """
        result = result or self.robustness(X_eval, y_eval, certify=False)
        return bias_audit(
            result.predictions,
            result.flip_sets,
            inputs.group_frame(groups_train, self.row_ids, "training rows"),
            None
            if groups_eval is None
            else inputs.group_frame(groups_eval, result.predictions["row_id"], "evaluation rows"),
            train_labels=np.asarray(self.problem.classes)[self.rows.y.astype(np.intp)],
            **{"classes": self.problem.classes, **self._unweighted(X_eval, len(result.predictions)), **options},
        )

    def _unweighted(self, X_eval: Any, count: int) -> dict[str, Any]:
        """What takes off the probabilities what class weights add: a shift of two classes' log-odds, or all of more."""
        if self.rows.outputs == 1:
            return {"log_odds_shift": float(self._log_weights()[0])}
        evaluation = self.evaluation_rows(X_eval)
        outputs = evaluation.margins(self.point.theta).reshape(-1, self.rows.outputs)[:count]
        return {"probabilities": self.problem.probabilities((outputs - self._log_weights()).T.copy()).T}

    def _log_weights(self) -> FloatArray:
        """How far class weights move each output from where the data alone would have it, shape (M,)."""
        likelihood, base = self.problem.likelihood, self.rows.base_weight
        counts = likelihood.counts(base, self.rows.y)
        weights = likelihood.class_weights(self.problem.class_weight, counts, float(base.sum()))
        return np.asarray(np.log(weights[:, 0]) if likelihood.coupled else np.log(weights[1] / weights[0]))

    def evaluation_rows(self, X: Any) -> Rows:
        """Rows to predict, through the transformer steps; labels unknown."""
        return inputs.evaluation_rows(self.problem, self._transformer, X)
