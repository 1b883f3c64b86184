"""How per-token losses become one number: `mask -> weight [..., T]`, so that the loss is `sum(weight * loss)`.

The denominators depend on the mask alone, never on parameters. So they are computed once, on the global batch;
after that everything is a plain sum, and micro-batches and devices cannot change the result.

All axes but the last are rows (sequences). A row or a batch without tokens has weight 0.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.ops.masking import as_bool, masked_count

Aggregate = Callable[[Array], Array]


def _num_rows(mask: Array, count_empty_rows: bool) -> Array:
  has_tokens = jnp.any(as_bool(mask), axis=-1)
  rows = jnp.ones_like(has_tokens) if count_empty_rows else has_tokens
  return jnp.maximum(masked_count(rows), 1)


def token_mean() -> Aggregate:
  """Every token counts the same: `w_t = m_t / sum(m)`.

  Returns:
    `mask [..., T] -> weight [..., T]`; the weights add up to 1.

  Reference: Q. Yu et al., "DAPO", arXiv:2503.14476.

  >>> print(token_mean()(jnp.array([[1, 1, 1], [1, 0, 0]])))
  [[0.25 0.25 0.25]
   [0.25 0.   0.  ]]
  """
  return lambda mask: as_bool(mask) / jnp.maximum(masked_count(mask), 1)


def sequence_mean(*, count_empty_rows: bool = False) -> Aggregate:
  """Every sequence counts the same: `w_it = m_it / (n_i B)`, with `n_i` tokens in row i and B rows.

  Args:
    count_empty_rows: Whether B counts rows without tokens. TRL counts them, verl does not.

  Returns:
    `mask [..., T] -> weight [..., T]`; the weights of each row with tokens add up to `1 / B`.

  Reference: Z. Shao et al., "DeepSeekMath" (GRPO), arXiv:2402.03300.

  >>> print(sequence_mean()(jnp.array([[1, 1], [1, 0], [0, 0]])))
  [[0.25 0.25]
   [0.5  0.  ]
   [0.   0.  ]]
  """

  def weight(mask: Array) -> Array:
    tokens = jnp.maximum(masked_count(mask, axis=-1), 1)[..., None]
    return as_bool(mask) / (tokens * _num_rows(mask, count_empty_rows))

  return weight


def sequence_sum(*, count_empty_rows: bool = False) -> Aggregate:
  """The mean over sequences of the sum over their tokens: `w_it = m_it / B`.

  Args:
    count_empty_rows: Whether B counts rows without tokens. TRL counts them, verl does not.

  Returns:
    `mask [..., T] -> weight [..., T]`; a longer sequence weighs more.

  Reference: R. J. Williams, "Simple Statistical Gradient-Following Algorithms" (REINFORCE), 1992; as a correction of
  GRPO's length bias, LUSPO, arXiv:2602.05261.

  >>> print(sequence_sum()(jnp.array([[1, 1], [1, 0], [0, 0]])))
  [[0.5 0.5]
   [0.5 0. ]
   [0.  0. ]]
  """
  return lambda mask: as_bool(mask) / _num_rows(mask, count_empty_rows)


def prompt_mean(*, count_empty_prompts: bool = False) -> Aggregate:
  """Every prompt counts the same: the mean over prompts of the mean over all tokens of a prompt's completions.

  `w_pgt = m_pgt / (n_p P)`, with `n_p` tokens in all completions of prompt p and P prompts. The axis before the last
  holds a prompt's completions; a mask `[T]` is one prompt with one completion.

  Args:
    count_empty_prompts: Whether P counts prompts without tokens.

  Returns:
    `mask [..., G, T] -> weight [..., G, T]`.

  >>> print(prompt_mean()(jnp.array([[[1, 1], [1, 1]], [[1, 0], [0, 0]]])))
  [[[0.125 0.125]
    [0.125 0.125]]
  <BLANKLINE>
   [[0.5   0.   ]
    [0.    0.   ]]]
  """

  def weight(mask: Array) -> Array:
    grouped = as_bool(mask).reshape((*mask.shape[:-2], -1))
    return sequence_mean(count_empty_rows=count_empty_prompts)(grouped).reshape(mask.shape)

  return weight


def token_sum() -> Aggregate:
  """The plain sum over tokens: `w_t = m_t`. The loss grows with the batch; the learning rate has to know its size.

  Returns:
    `mask [..., T] -> weight [..., T]`.

  >>> print(token_sum()(jnp.array([[1, 1], [1, 0]])))
  [[1. 1.]
   [1. 0.]]
  """
  return lambda mask: as_bool(mask).astype(jnp.result_type(float))


def constant_length(*, length: int | Array, count_empty_rows: bool = True) -> Aggregate:
  """Divides by a constant instead of by each row's length: `w_it = m_it / (length B)`.

  Args:
    length: The normalizer, usually the longest completion allowed. It is required, because an array's size
      would follow the padding of the batch.
    count_empty_rows: Whether B counts rows without tokens.

  Returns:
    `mask [..., T] -> weight [..., T]`; every token has the weight `1 / (length B)`.

  Raises:
    ValueError: If `length` is below 1.

  Reference: Z. Liu et al., "Understanding R1-Zero-Like Training" (Dr. GRPO), arXiv:2503.20783.

  >>> print(constant_length(length=4)(jnp.array([[1, 1], [1, 0]])))
  [[0.125 0.125]
   [0.125 0.   ]]
  """
  if isinstance(length, int | float) and length < 1:
    raise ValueError(f"length must be at least 1, got {length}")
  return lambda mask: as_bool(mask) / (length * _num_rows(mask, count_empty_rows))
