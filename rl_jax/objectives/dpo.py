"""Direct Preference Optimization (DPO) and its family, by the name of the loss.

With `c = log pi(y_c) - log ref(y_c)`, `r` likewise for the rejected answer, `d = f(c) - f(r)` and `S = sigmoid`, each
is the mean over pairs of what follows. `f(u) = u` unless another divergence is chosen, which losses of d alone allow.

    sigmoid     -(1 - e) log S(beta d) - e log S(-beta d)          DPO, arXiv:2305.18290; e > 0: cDPO
    robust      (-(1 - e) log S(beta d) + e log S(-beta d)) / (1 - 2 e)                     arXiv:2403.00409
    hinge       max(1 - beta d, 0)                                                          SLiC, arXiv:2305.10425
    ipo         (d - 1 / (2 beta))^2                                                        arXiv:2310.12036
    exo         q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e),  q = S(beta d)       arXiv:2402.00856
    nca         -log S(beta c) - 1/2 log S(-beta c) - 1/2 log S(-beta r)                    arXiv:2402.05369
    bco         -log S(beta c - delta) - log S(-(beta r - delta)),  delta given             arXiv:2404.04656
    sppo        (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2                                 arXiv:2405.00675
    aot         sigmoid of sorted margins: the batch's policy margins against its reference margins, arXiv:2406.05882
    apo_zero    (1 - S(beta c)) + S(beta r)                                                 arXiv:2408.06266
    apo_down    S(beta c) + (1 - S(beta (c - r)))                                           arXiv:2408.06266
    discopop    -log S(x) (1 - S(x / tau)) + exp(-x) S(x / tau),  x = beta d                arXiv:2406.08414

`aot` sorts over the batch: its ranks come from `batch_logp`, so that micro-batches and devices sort the same batch.

How the defaults differ elsewhere:
  - TRL 1.16: the same formulas and beta; its `ipo` divides each log-ratio by the answer's length first
    (`length_normalized=True` here), `exo` takes e = 1e-3 where none is given, `bco` has delta 0;
    `aot_unpaired`, which ties the pairs of a batch together, is not here.
  - verl has no DPO in its core.

Reference: R. Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
arXiv:2305.18290; f-divergences: C. Wang et al., "Beyond Reverse KL", arXiv:2309.16240; length-desensitized: W. Liu et
al., "Length Desensitization in Direct Preference Optimization", arXiv:2409.06411.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.objectives.base import Inputs, Objective, field
from rl_jax.objectives.pairs import Pair, pairwise, sequence_logp
from rl_jax.ops.masking import as_bool
from rl_jax.ops.numerics import largest_exponent, safe_exp

_S, _log_S = jax.nn.sigmoid, jax.nn.log_sigmoid


class Compared(NamedTuple):
  """What a loss of the family reads: log-ratios after `f`, their difference, and the hyperparameters."""

  chosen: Array
  rejected: Array
  difference: Array
  beta: float | Array
  smoothing: float | Array
  tau: float | Array
  delta: float | Array


def _logistic(x: Array, smoothing: float | Array) -> Array:
  return -(1 - smoothing) * _log_S(x) - smoothing * _log_S(-x)


def _sigmoid(p: Compared) -> Array:
  return _logistic(p.beta * p.difference, p.smoothing)


def _robust(p: Compared) -> Array:
  x = p.beta * p.difference
  return (-(1 - p.smoothing) * _log_S(x) + p.smoothing * _log_S(-x)) / (1 - 2 * p.smoothing)


def _hinge(p: Compared) -> Array:
  return jax.nn.relu(1 - p.beta * p.difference)


def _ipo(p: Compared) -> Array:
  return jnp.square(p.difference - 1 / (2 * p.beta))


def _exo(p: Compared) -> Array:
  x = p.beta * p.difference
  right = _S(x) * (_log_S(x) - jnp.log1p(-jnp.asarray(p.smoothing)))
  return right + _S(-x) * (_log_S(-x) - jnp.log(p.smoothing))


def _nca(p: Compared) -> Array:
  chosen, rejected = p.beta * p.chosen, p.beta * p.rejected
  return -_log_S(chosen) - 0.5 * _log_S(-chosen) - 0.5 * _log_S(-rejected)


def _bco(p: Compared) -> Array:
  return -_log_S(p.beta * p.chosen - p.delta) - _log_S(-(p.beta * p.rejected - p.delta))


def _sppo(p: Compared) -> Array:
  return jnp.square(p.chosen - 0.5 / p.beta) + jnp.square(p.rejected + 0.5 / p.beta)


def _apo_zero(p: Compared) -> Array:
  return 1 - _S(p.beta * p.chosen) + _S(p.beta * p.rejected)


def _apo_down(p: Compared) -> Array:
  return _S(p.beta * p.chosen) + 1 - _S(p.beta * p.difference)


def _discopop(p: Compared) -> Array:
  x = p.beta * p.difference
  gate = _S(x / p.tau)
  return -_log_S(x) * (1 - gate) + safe_exp(-x) * gate


LOSSES: dict[str, Callable[[Compared], Array]] = {
  function.__name__.removeprefix("_"): function
  for function in (_sigmoid, _robust, _hinge, _ipo, _exo, _nca, _bco, _sppo, _apo_zero, _apo_down, _discopop)
}
# Those that are no functions of the difference alone: what they mean under another divergence, no paper says.
_ONE_SIDED = frozenset({"nca", "bco", "sppo", "apo_zero", "apo_down"})
_DIVERGENCES: dict[str, Callable[[Array, float | Array], Array]] = {
  "reverse_kl": lambda u, alpha: u,
  "forward_kl": lambda u, alpha: 1 - safe_exp(-u),
  "js": lambda u, alpha: jnp.log(2.0) + _log_S(u),
  "alpha": lambda u, alpha: (safe_exp((alpha - 1) * u) - 1) / (alpha - 1),
}


def objective(
  *,
  loss: str = "sigmoid",
  beta: float | Array = 0.1,
  label_smoothing: float | Array = 0.0,
  divergence: str = "reverse_kl",
  alpha: float | Array = 0.5,
  length_normalized: bool = False,
  tail_weight: float | Array = 1.0,
  tau: float | Array = 0.05,
  delta: float | Array = 0.0,
) -> Objective:
  """Returns an objective of the family, on pairs `[..., 2, T]` with the chosen side first.

  Args:
    loss: One of the names above.
    beta: Strength of the pull towards the reference.
    label_smoothing: e above, the share of pairs that may be the wrong way round; `exo` needs it positive.
    divergence: The f-divergence that the pull minimizes: "reverse_kl" (`f(u) = u`), "forward_kl" (`1 - exp(-u)`), "js"
      (`log 2 + log S(u)`), or "alpha" (`(exp((alpha - 1) u) - 1) / (alpha - 1)`); exponents stay below
      overflow.
    alpha: Parameter of the alpha-divergence, in TRL's convention, which is one minus that of the paper on
      f-divergences; not 1, where the limit is "reverse_kl".
    length_normalized: Whether log-ratios are divided by the numbers of tokens.
    tail_weight: Weight of the log-probs beyond the shorter answer's length; below 1 it desensitizes to length.
    tau: Temperature of `discopop`.
    delta: Shift of `bco`, usually a running mean of the rewards.

  Raises:
    ValueError: For another loss or divergence, for another divergence than "reverse_kl" with `nca`, `bco`, `sppo`,
      `apo_zero` and `apo_down`, and for `exo` without label smoothing.

  >>> sorted(objective().needs)
  ['logp', 'ref_logp']
  >>> sorted(objective(loss="aot").needs)
  ['batch_logp', 'logp', 'ref_logp']
  """
  if loss != "aot" and loss not in LOSSES:
    raise ValueError(f"loss must be one of {', '.join(sorted([*LOSSES, 'aot']))}, got {loss!r}")
  if divergence not in _DIVERGENCES:
    raise ValueError(f"divergence must be one of {', '.join(_DIVERGENCES)}, got {divergence!r}")
  if divergence == "alpha" and isinstance(alpha, int | float) and alpha == 1:
    raise ValueError("alpha must not be 1: the alpha-divergence is then 'reverse_kl'")
  if loss == "exo" and isinstance(label_smoothing, int | float) and label_smoothing <= 0:
    raise ValueError(f"loss 'exo' needs a positive label_smoothing, got {label_smoothing}")
  if loss in _ONE_SIDED and divergence != "reverse_kl":
    raise ValueError(
      f"loss {loss!r} is defined for divergence 'reverse_kl' alone, being no function of the difference; "
      f"got {divergence!r}"
    )
  if loss == "aot" and (divergence != "reverse_kl" or length_normalized):
    raise ValueError("loss 'aot' takes neither another divergence nor length normalization")
  if loss == "aot":
    return _aot(beta, label_smoothing, tail_weight)
  compare, f = LOSSES[loss], _DIVERGENCES[divergence]

  def preference(pair: Pair, _) -> tuple[Array, tuple[Array, Array]]:
    assert pair.log_ratio is not None
    scale = tuple(jnp.maximum(n, 1) if length_normalized else 1 for n in pair.tokens)
    chosen, rejected = (_bounded(f(u, alpha)) / n for u, n in zip(pair.log_ratio, scale, strict=True))
    difference = chosen - rejected
    compared = Compared(chosen, rejected, difference, beta, label_smoothing, tau, delta)
    return compare(compared), (beta * chosen, beta * rejected)

  return pairwise(preference, tail_weight=tail_weight)


def _bounded(x: Array) -> Array:
  """Keeps what an exponential may have made of a log-ratio small enough to be squared."""
  limit = jnp.exp(largest_exponent(x) / 2)
  return jnp.clip(x, -limit, limit)


def _aot(beta: float | Array, smoothing: float | Array, tail_weight: float | Array) -> Objective:
  """The i-th smallest policy margin of the batch against its i-th smallest reference margin."""

  def margins(logp: Array, mask: Array) -> Array:
    total = sequence_logp(logp, mask, tail_weight=tail_weight)
    return total[..., 0] - total[..., 1]

  def ranked_reference(inputs: Inputs, weights: Array) -> Array:
    complete = as_bool(weights)
    ours = jnp.where(complete, margins(field(inputs, "batch_logp"), inputs.mask), jnp.inf)
    theirs = jnp.where(complete, margins(field(inputs, "ref_logp"), inputs.mask), jnp.inf)
    rank = jnp.argsort(jnp.argsort(ours.reshape(-1), stable=True), stable=True).reshape(ours.shape)
    return jax.lax.stop_gradient(jnp.where(complete, jnp.sort(theirs, axis=None)[rank], 0))

  def aot(pair: Pair, reference: Array) -> tuple[Array, tuple[Array, Array]]:
    assert pair.log_ratio is not None
    margin = beta * (pair.logp[0] - pair.logp[1] - reference)
    return _logistic(margin, smoothing), (beta * pair.log_ratio[0], beta * pair.log_ratio[1])

  return pairwise(aot, tail_weight=tail_weight, constants=ranked_reference, needs=("batch_logp", "ref_logp"))
