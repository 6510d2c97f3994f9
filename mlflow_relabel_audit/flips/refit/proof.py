r"""When the sign of a refitted margin is proved.

At theta let ``r = grad F_S(theta)``, ``delta = theta_S - theta``, ``d_i`` the curvature weights at theta and
``dbar_i = s_i (sigma(z_i + delta_i) - sigma(z_i)) / delta_i`` their secants, ``Hbar = X' diag(dbar) X + R``.
Stationarity is the exact equation ``r + Hbar delta = 0``. Write H for the reference Hessian, d0 its weights,
``h = max_i ||x_i||_{H^-1}`` and ``eps = ||r||_{H^-1}``.

1. *Spectral bound.* ``X' diag(d) X + R >= kappa H`` with ``kappa = min(1, min_i d_i / d0_i)``, and also with
   ``kappa = q - sum_i (q d0_i - d_i)_+ h_i^2`` for any q <= 1, because ``x_i x_i' <= h_i^2 H``. Under an own
   reference that is at least kappa' times the shared one, ``h_i^2`` is at most the shared norm's over kappa'.
2. *Localisation.* ``rho = max_i |delta_i|``. As sigma' falls at most by exp(-|s|) over a distance s,
   ``dbar_i >= phi(rho) d_i`` with ``phi(rho) = (1 - exp(-rho)) / rho``, so ``Hbar >= phi(rho) kappa H`` and
   ``|delta_i| <= h eps / (kappa phi(rho))``, that is ``1 - exp(-rho) <= a := h eps / kappa``. Where a < 1,
   ``rho <= -log(1 - a)``; where not, nothing is claimed.
3. *Goal-oriented bound.* For ``u = H^-1 x_t``: ``x_t . delta = -u . r + (x_t - Hbar u) . delta``, and
   ``x_t - Hbar u = X' ((d0 - dbar) * (X u))``, so by Cauchy-Schwarz in the dbar-weighted product
   ``|x_t . delta + u . r| <= sqrt(sum_i (d0_i - dbar_i)^2 response_i^2 / dbar_i) E``, ``E <= eps / sqrt(kappa phi)``.
   With ``dbar = t d``, t in [phi(rho), phi(-rho)], the root is at most ``(sqrt(Q) + w sqrt(C)) / sqrt(phi)`` with
   ``Q = sum (d0 - d)^2 response^2 / d``, ``C = sum d response^2``, ``w = phi(-rho) - 1``.
4. *Plain bound.* ``|x_t . delta| <= ||x_t||_{H^-1} eps / (kappa phi)``.
5. *Moves.* Relabelling one more row moves r by ``a_i x_i`` and so eps by ``|a_i| h_i`` at most: a sign may be proved
   for a neighbouring k without solving with H again.
6. *Several outputs.* Under a softmax W_i takes the place of d_i and c that of d (see `likelihood`), the range of a
   row's move that of ``|delta_i|``, and h_i is the largest norm of a difference of its outputs. 1 holds with
   ``c >= kappa c0`` output by output, and with ``kappa = q - sum_i h_i^2 sum_m (q c0_im - c_im)_+``; 2 because c falls
   at most by exp(-range); in 3 the secant W lies between ``phi(rho) W`` and ``phi(-rho) W``, and the norm of
   ``v = (W0 - W) response``, which sums to zero, is ``sum_m v_m^2 / c_m``; the response then needs its sign.

The margin after the refit is thus known to within an interval from either bound; a sign is proved where one of
them leaves zero outside. ``response`` may be any upper bound of ``|x_i . u|`` in 3, which absorbs its float32 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlflow_relabel_audit.likelihood import FloatArray

ROUNDING = 1e-10
"""Relative slack for float64 rounding in the sums of the sign proof."""


@dataclass(frozen=True)
class Near:
    """How near to its minimiser a point is, for B columns (steps 1, 2 and 5).

    Attributes
    ----------
    epsilon, kappa : ndarray of shape (B,)
    phi, grown : ndarray of shape (B,)
        ``phi(rho)`` and ``phi(-rho)``.
    """

    epsilon: FloatArray
    kappa: FloatArray
    phi: FloatArray
    grown: FloatArray

    @classmethod
    def of(cls, epsilon: FloatArray, kappa: FloatArray, norm_max: FloatArray) -> Near:
        """For gradients of these norms, spectral bounds and largest row norms."""
        epsilon = epsilon * (1.0 + ROUNDING)
        kappa = np.maximum(kappa, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            a = norm_max * epsilon / kappa
            rho = np.where(a < 1.0, -np.log1p(-np.minimum(a, 1.0)), np.inf)
            phi = np.where(rho > 0, -np.expm1(-rho) / rho, 1.0)
            grown = np.where(rho > 0, np.expm1(rho) / rho, 1.0)
        return cls(epsilon, kappa, phi, grown)

    @property
    def radius(self) -> FloatArray:
        """Bound of ``||delta||_H``, shape (B,); inf where nothing is known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return _known(self.epsilon / (self.kappa * self.phi))


def interval(
    here: FloatArray, estimate: FloatArray, target_norm: FloatArray, near: Near, root_q: FloatArray, root_c: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Margin after the refit, and a bound of the estimate's error (inf where none holds), each of shape (B,).

    Parameters
    ----------
    here : ndarray of shape (B,)
        present margins.
    estimate : ndarray of shape (B,)
        less ``u . r`` (step 3).
    target_norm : ndarray of shape (B,)
        ``||x_t||_{H^-1}``.
    near : Near
    root_q, root_c : ndarray of shape (B,)
        roots of Q and C.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        energy = near.epsilon / np.sqrt(near.kappa * near.phi)
        goal = (root_q + (near.grown - 1.0) * root_c) / np.sqrt(near.phi) * energy
        plain = target_norm * near.epsilon / (near.kappa * near.phi)
    slack = ROUNDING * (1.0 + np.abs(here) + target_norm)
    goal, plain = _known(goal) + slack, _known(plain) + slack
    # the plain interval is centred on the present margin: keep whichever proves more
    better = np.abs(here) - plain > np.abs(estimate) - goal
    return np.where(better, here, estimate), np.where(better, plain, goal)


def _known(bound: FloatArray) -> FloatArray:
    return np.where(np.isfinite(bound), bound, np.inf)
