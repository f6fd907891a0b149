"""Ranks by empirical variational Bayesian matrix factorisation, for matrices seen whole and noise of unknown strength.

Nakajima, Sugiyama, Babacan, Tomioka: Global analytic solution of fully-observed variational Bayesian matrix factorization.
JMLR 14, 2013 (Theorems 2 and 5, Corollary 2). With L <= M the sides, a = L / M and the singular values g_h:

    x_ = (1 + t_)(1 + a / t_),  t_ = 2.5129 sqrt(a)        a singular value is kept where  g^2 > M s^2 x_
    s^2 = argmin over h of  sum psi0(x_h) + [x_h > x_] psi1(x_h),   x_h = g_h^2 / (M s^2)
"""

from __future__ import annotations

from math import ceil, sqrt

import numpy as np

from batude_onnx.records import FloatArray

GRID = 4000


def evbmf_rank(singular: FloatArray, rows: int, columns: int) -> int:
    """How many of the `singular` values (descending, min(rows, columns) of them) of a matrix are signal."""
    low, high = sorted((rows, columns))
    alpha = low / high
    tau = 2.5129 * sqrt(alpha)
    least = (1 + tau) * (1 + alpha / tau)
    squares = np.asarray(singular, dtype=np.float64) ** 2
    if not squares.sum() > 0:
        return 0
    signal = min(ceil(low / (1 + alpha)) - 1, low - 1)
    upper = squares.sum() / (low * high)
    lower = max(squares[signal] / (high * least), squares[signal:].mean() / high)
    variances = np.geomspace(max(lower, 1e-12 * upper), upper, GRID)
    x = np.maximum(squares / (high * variances[:, None]), 1e-300)
    above = np.maximum(x, least)
    root = 0.5 * (above - (1 + alpha) + np.sqrt(np.maximum((above - (1 + alpha)) ** 2 - 4 * alpha, 0.0)))
    kept = np.log(root + 1) + alpha * np.log(root / alpha + 1) - root
    energy = (x - np.log(x) + np.where(x > least, kept, 0.0)).sum(1)
    variance = variances[energy.argmin()]
    return int((squares > high * variance * least).sum())
