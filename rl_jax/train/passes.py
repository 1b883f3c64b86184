"""What the models say of a rollout: old and reference log-probs, values, a reward model's scores."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from rl_jax.train.score import RewardModel, Score, Sequences, Values
from rl_jax.train.state import RLState


class Passes(NamedTuple):
  """One field a model; None where nothing needs it.

  Attributes:
    old_logp: The policy's at the start of its updates; on-policy None, unless `score` ran for the values.
    ref_logp: The reference's.
    values: The critic's.
    scores: The reward model's, of completions or of their tokens.
  """

  old_logp: Float[Array, "P G T"] | None
  ref_logp: Float[Array, "P G T"] | None
  values: Values | None
  scores: Float[Array, "P G"] | Float[Array, "P G T"] | None


def make_passes(
  score: Score,
  needs: AbstractSet[str],
  *,
  reference: Callable[[RLState, Sequences], Array] | None = None,
  values: Callable[[Any, Sequences], Values] | None = None,
  reward_model: RewardModel | None = None,
  on_policy: bool = True,
  recompute_old_logp: bool = False,
) -> Callable[[RLState, Sequences, Array], Passes]:
  """Returns `passes(state, sequences, sampled_logp) -> Passes`, which runs no model that nothing needs.

  Args:
    score: From `train.make_score`, jitted.
    needs: "ref_logp", "values" and "old_values" say which models run.
    reference: `(state, sequences) -> log-probs [P, G, T]`; by default `score` with the state's `ref_params`.
    values: From `make_values`, jitted; by default values come from `score`, with the old log-probs.
    reward_model: Runs where there is one.
    on_policy: Whether the learner's own log-probs are the old ones.
    recompute_old_logp: Otherwise: whether they come from `score`, or are those of the sampler. Where values come from
      `score`, they do too.

  `passes` raises ValueError if values are needed and `score` gives none.

  >>> from types import SimpleNamespace
  >>> from rl_jax.train.score import Scores
  >>> state = SimpleNamespace(policy=SimpleNamespace(params=2.0), ref_params=3.0)
  >>> passes = make_passes(lambda params, sequences: Scores(-params * sequences, None), {"ref_logp"}, on_policy=False)
  >>> passes(state, 1.0, -2.1)
  Passes(old_logp=-2.1, ref_logp=-3.0, values=None, scores=None)
  """
  with_values = bool({"values", "old_values"} & needs)

  def of_actors(params: Any, sequences: Sequences, sampled_logp: Array) -> tuple[Any, Values | None]:
    if with_values and values is None:
      scores = score(params, sequences)
      if scores.values is None:
        raise ValueError("the objective or the estimator needs values: give a score function with a critic")
      return scores.logp, Values(scores.values)
    of_critic = values(params, sequences) if with_values and values is not None else None
    if on_policy:
      return None, of_critic
    return score(params, sequences).logp if recompute_old_logp else sampled_logp, of_critic

  def of_reference(state: RLState, sequences: Sequences) -> Any:
    return score(state.ref_params, sequences).logp if reference is None else reference(state, sequences)

  def passes(state: RLState, sequences: Sequences, sampled_logp: Array) -> Passes:
    old_logp, of_critic = of_actors(state.policy.params, sequences, sampled_logp)
    ref_logp = of_reference(state, sequences) if "ref_logp" in needs else None
    return Passes(old_logp, ref_logp, of_critic, None if reward_model is None else reward_model(sequences))

  return passes
