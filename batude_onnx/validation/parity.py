r"""Two graphs compute the same: every element of every output is held against

    |a - b| <= atol + rtol |a|

with a from the reference. Why the defaults are what they are, in float32 (eps = 6e-8): summing a convolution of K products
in another order moves an element by about sqrt(K) eps of the output's scale, 4e-6 for the largest kernels (K = 4608), and
a few tens of layers add up to some 4e-5. So

- atol = 1e-4 rms(a), on the output's own scale, as elements near zero carry the error of the large terms that cancelled;
  not below 1e-5, because a saturated sigmoid or softmax (outputs of 4e-5 on noise, say) differs by that for every tool;
- rtol = 1e-3, for the few elements far above the rms.

A wrong rewrite (a swapped axis, a lost bias) is off by the order of rms(a), ten thousand times as much. float16 outputs
(eps = 1e-3) get atol = 1e-2 rms(a), not below 1e-3, and rtol = 1e-2, and so do those of a model whose weights are rounded to it,
whatever their own type. The inputs must be realistic: on noise a detector may
show nothing but its floor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batude_onnx.errors import ParityError
from batude_onnx.records import OutputDifference

Array = npt.NDArray[Any]

# (atol as a fraction of the rms, its floor, rtol)
SINGLE = (1e-4, 1e-5, 1e-3)
HALF = (1e-2, 1e-3, 1e-2)


def tolerances(reference: Array, half: bool = False) -> tuple[float, float]:
    """The default (atol, rtol) for an output like `reference`; `half`: of a model whose weights are in half precision."""
    fraction, floor, relative = HALF if half or reference.dtype.itemsize < 4 else SINGLE
    values = reference.astype(np.float64)
    finite = values[np.isfinite(values)]
    rms = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    return max(floor, fraction * rms), relative


def compare(
    a: Mapping[str, Array], b: Mapping[str, Array], atol: float | None = None, rtol: float | None = None, *, half: bool = False
) -> tuple[OutputDifference, ...]:
    """How far `b` lies from the reference `a`, output by output (those of `a` first, then what only `b` has).

    Floats must keep to `atol` and `rtol` (None: the defaults above, for `half` precision or not), everything else must be
    equal. A NaN or Inf is within only where the other has the same at the same place. An output that only one side has, or
    with another shape or another kind of type, is never within and infinitely far.
    """
    names = [*a, *(name for name in b if name not in a)]
    return tuple(_difference(name, a.get(name), b.get(name), atol, rtol, half) for name in names)


def require(differences: Sequence[OutputDifference], what: str, where: Callable[[], str] = str) -> None:
    """Raises ParityError, which names the output furthest off, unless every difference is within.

    `what` says of what; `where`, asked only then, where the difference comes from.
    """
    if not differences:
        raise ParityError(f"{what}: no output was compared; feed at least one sample")
    wrong = [difference for difference in differences if not difference.within]
    if not wrong:
        return
    worst = max(wrong, key=lambda difference: difference.max_absolute)
    place = where()
    raise ParityError(
        f"{what}: output {worst.output!r} is off by {worst.max_absolute:.3g} (relative {worst.max_relative:.3g}, cosine "
        f"{worst.cosine:.6f}), {len(wrong)} of {len(differences)} outputs are outside of the tolerance; "
        f"{place}{'; ' if place else ''}nothing was written"
    )


def _difference(
    name: str, a: Array | None, b: Array | None, atol: float | None, rtol: float | None, half: bool
) -> OutputDifference:
    if a is None or b is None or a.shape != b.shape or _kind(a) != _kind(b):
        return OutputDifference(name, float("inf"), float("inf"), 0.0, within=False)
    if _kind(a) == "float":
        default_atol, default_rtol = tolerances(a, half)
        absolute = default_atol if atol is None else atol
        return _floats(name, a, b, absolute, default_rtol if rtol is None else rtol)
    if _kind(a) == "integer":
        return _integers(name, a, b)
    equal = bool(np.array_equal(a, b))
    far = 0.0 if equal else float("inf")
    return OutputDifference(name, far, far, 1.0 if equal else 0.0, within=equal)


def _kind(array: Array) -> str:
    # Kind 'V' holds the small floats of ml_dtypes.
    return {"f": "float", "V": "float", "i": "integer", "u": "integer", "b": "integer"}.get(array.dtype.kind, "other")


def _floats(name: str, a: Array, b: Array, atol: float, rtol: float) -> OutputDifference:
    """`max_relative` is over the elements above `atol`: below it a relative error says nothing (an exact zero would be Inf)."""
    first, second = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(first) & np.isfinite(second)
    same_special = (np.isnan(first) & np.isnan(second)) | (~finite & (first == second))
    x, y = first[finite], second[finite]
    gap, size = np.abs(x - y), np.abs(x)
    within = bool((gap <= atol + rtol * size).all() and (finite | same_special).all())
    broken = not bool((finite | same_special).all())
    counted = size > atol
    return OutputDifference(
        name,
        float("inf") if broken else float(gap.max(initial=0.0)),
        float("inf") if broken else float((gap[counted] / size[counted]).max(initial=0.0)),
        cosine(x, y),
        within,
    )


def _integers(name: str, a: Array, b: Array) -> OutputDifference:
    # Python's integers of a float64 rounding: equality is decided on the integers themselves.
    first, second = a.astype(np.float64), b.astype(np.float64)
    gap = np.abs(first - second)
    relative = gap[first != 0] / np.abs(first[first != 0])
    equal = bool((a == b).all())
    return OutputDifference(
        name, float(gap.max(initial=0.0)), float(relative.max(initial=0.0)), cosine(first, second), within=equal
    )


def cosine(x: Array, y: Array) -> float:
    """The cosine between two arrays taken as vectors; 1 where both are zero (or empty), 0 where one is.

    Places where either is infinite (the logarithm of a zero) do not count, nor do those where `x` is no number.
    """
    x, y = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    known = np.isfinite(x) & ~np.isinf(y)
    x, y = x[known], y[known]
    # Scaled first, so that squares neither overflow nor vanish.
    x, y = (v / scale if (scale := float(np.abs(v).max(initial=0.0))) else v for v in (x, y))
    lengths = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if 0.0 in lengths:
        return 1.0 if lengths[0] == lengths[1] else 0.0
    return float(np.clip(x @ y / (lengths[0] * lengths[1]), -1.0, 1.0))
