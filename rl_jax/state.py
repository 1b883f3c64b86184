"""What everything passes on, as explicit pytrees; what `RLState` does not hold is not needed to resume exactly."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped

from rl_jax.objectives.base import Inputs
from rl_jax.ops.moments import Moments


class Sequences(NamedTuple):
  """Prompts and their completions, the part of a batch that a model reads.

  Attributes:
    prompts: `[P, L]`.
    prompt_mask: `[P, L]`, 1 for real tokens.
    completions: `[P, G, T]`.
    completion_mask: `[P, G, T]`, 1 for real tokens: they are attended to, whether or not they are trained on.
  """

  prompts: Int[Array, "P L"]
  prompt_mask: Shaped[Array, "P L"]
  completions: Int[Array, "P G T"]
  completion_mask: Shaped[Array, "P G T"]

  @property
  def real(self) -> Shaped[Array, "P G T"]:
    """Which tokens are real, as `Episodes` says which steps are."""
    return self.completion_mask


class Episodes(NamedTuple):
  """Episodes of an environment, the part of a batch that an agent reads: a completion whose tokens are its steps.

  Attributes:
    observations: `[P, G, T + 1, D]`, normalized, before each step and after the last one; what follows is padding.
    actions: `[P, G, T]`, or `[P, G, T, A]` as they were drawn, before the environment clipped them.
    real: `[P, G, T]`, 1 for steps that were made.
  """

  observations: Float[Array, "P G T1 D"]
  actions: Shaped[Array, "P G T *A"]
  real: Shaped[Array, "P G T"]


class ModelOutputs(NamedTuple):
  """What one pass of the learner gives: the learner's fields of `objectives.base.Inputs`.

  Attributes:
    logp: `[..., T]`, of each completion token.
    entropy: `[..., T]`, of the distribution that each was chosen from.
    values: `[..., T]`, a critic's, of the state before each token; None without one.
    reward_scores: `[...]`, a reward model's, one a completion; None without one.
  """

  logp: Float[Array, "*batch T"] | None
  entropy: Float[Array, "*batch T"] | None
  values: Float[Array, "*batch T"] | None = None
  reward_scores: Float[Array, "*batch"] | None = None


class Values(NamedTuple):
  """What a critic says of completions.

  Attributes:
    tokens: `[P, G, T]`, at t of the state *before* token t was chosen.
    last: `[P, G]`, of the state after the last token; None where nobody asks for it.
  """

  tokens: Float[Array, "P G T"]
  last: Float[Array, "P G"] | None = None


class Batch(NamedTuple):
  """What an update reads. Every leaf has the prompts on its leading axis.

  Attributes:
    sequences: What the forward pass reads: `Sequences`, `Episodes`, or anything else.
    inputs: The parameter-free fields of the objective's inputs; what the forward pass gives is filled in by the step,
      and so are `batch_logp` and `batch_entropy` where the objective needs them, by a pass of their own. Where
      `old_logp` is None, the batch counts as on-policy: the old log-probs are the learner's own.
  """

  sequences: Any
  inputs: Inputs


class Judgment(NamedTuple):
  """What is said of the completions of a rollout.

  Attributes:
    scores: Each reward's `[P, G]`, or `[P, G, T]` for rewards of tokens; NaN where it does not apply.
    weights: The weight of each of these scores in what is learned from, by the same names.
    logged: Scores of weight 0: they are there to be seen, and nothing is learned from them.
    solved: `[P, G]`, which completions are right; None where nobody can tell.
    greedy: What is said of each prompt's greedy completion; None where nobody asks.
  """

  scores: Mapping[str, Float[Array, "P G *T"]]
  weights: Mapping[str, Any]
  logged: Mapping[str, Float[Array, "P G *T"]] = {}
  solved: Shaped[Array, "P G"] | None = None
  greedy: "Greedy | None" = None

  @property
  def every(self) -> dict[str, Array]:
    """All scores by name, those that are only logged included."""
    return {**self.scores, **self.logged}

  @classmethod
  def of(cls, scores: Mapping[str, Array], weights: Mapping[str, float], solved: Array | None = None) -> "Judgment":
    """Returns a judgment by scores, of which those that have the weight 0 are logged alone.

    >>> judgment = Judgment.of({"exact": jnp.ones((1, 2)), "length": jnp.zeros((1, 2))}, {"exact": 1.0, "length": 0.0})
    >>> list(judgment.scores), list(judgment.logged)
    (['exact'], ['length'])
    """
    counted = {name: score for name, score in scores.items() if weights[name] != 0}
    logged = {name: score for name, score in scores.items() if weights[name] == 0}
    return cls(counted, {name: weights[name] for name in counted}, logged, solved)


class Greedy(NamedTuple):
  """Greedy completions, one a prompt.

  Attributes:
    scores: As a judgment's, with a group of one and the same weights.
    mask: `[P, 1, T]`, 1 for real tokens.
    terminated: `[P, 1]`, whether a stop token ended it.
  """

  scores: Mapping[str, Float[Array, "P 1 *T"]]
  mask: Shaped[Array, "P 1 T"]
  terminated: Shaped[Array, "P 1"]


Forward = Callable[[Any, Any], ModelOutputs]
RewardModel = Callable[[Sequences], Array]
Coefficients = Mapping[str, Float[Array, ""]]


class TrainState(NamedTuple):
  """A learner.

  Attributes:
    params: All that is trained together (policy, critic or value head), and what the passes read besides.
    opt_state: The optimizer's state.
    step: Updates that were tried.
    coefficients: The objective's numbers that a controller moves, by name; none without one.
  """

  params: Any
  opt_state: Any
  step: Int[Array, ""]
  coefficients: Coefficients = {}

  @classmethod
  def create(
    cls,
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    frozen: Sequence[str] = (),
    coefficients: Mapping[str, float] = {},
  ) -> "TrainState":
    start = {name: jnp.asarray(value, jnp.float32) for name, value in coefficients.items()}
    return cls(params, optimizer.init(split(params, frozen)[0]), jnp.zeros((), jnp.int32), start)


def split(params: Any, frozen: Sequence[str]) -> tuple[Any, dict[str, Any]]:
  """Returns what is trained and what is not, the entries of a dict of parameters that `frozen` names.

  Raises:
    ValueError: If an entry is missing.

  >>> split({"base": 1, "adapters": 2}, ["base"])
  ({'adapters': 2}, {'base': 1})
  """
  if not frozen:
    return params, {}
  if missing := sorted(set(frozen) - set(params)):
    raise ValueError(f"frozen names {missing[0]!r}, which the parameters lack; they have {', '.join(sorted(params))}")
  return {k: v for k, v in params.items() if k not in frozen}, {k: params[k] for k in frozen}


def join(trained: Any, constant: dict[str, Any]) -> Any:
  """Undoes `split`.

  >>> join({"adapters": 2}, {"base": 1})
  {'adapters': 2, 'base': 1}
  """
  return {**trained, **constant} if constant else trained


class Keys(NamedTuple):
  """The random streams of a run, each folded out of the run's key by its place here.

  Attributes:
    sample: Tokens; folded with the position in the data.
    order: Minibatches; folded with the number of the rollout.
    noise: Uniform numbers for objectives that pick tokens at random; folded with the position in the data.
    problems: Problems of on-device tasks; folded with the position in the data.
    adapters: Initial adapters.
    critic: A critic's initial parameters, or its adapters.
    head: The initial head of a critic or reward model.

  >>> keys = Keys.of(jax.random.key(0))
  >>> len({tuple(jax.random.key_data(stream).tolist()) for stream in keys})
  7
  """

  sample: Array
  order: Array
  noise: Array
  problems: Array
  adapters: Array
  critic: Array
  head: Array

  @classmethod
  def of(cls, key: Array) -> "Keys":
    return cls(*(jax.random.fold_in(key, place) for place in range(len(cls._fields))))


class Running(NamedTuple):
  """What a rollout moves on besides the policy.

  Attributes:
    position: Rows drawn from the task so far.
    reward_moments: Moments of all rewards so far; None where rewards are not standardized by them.
    reward_baseline: The running mean of rewards; None where no estimate of advantages needs it.
    observation_moments: `[D]`, of all observations so far; None where observations are not normalized by them.
  """

  position: Int[Array, ""]
  reward_moments: Moments | None = None
  reward_baseline: Float[Array, ""] | None = None
  observation_moments: Moments | None = None


class RLState(NamedTuple):
  """All that a resume needs.

  Attributes:
    policy: The learner; with a critic, the parameters of both.
    ref_params: The frozen reference's parameters; None where no objective needs them, or the learner holds them.
    key: The PRNG key of the whole run, constant; `keys` are the streams that are drawn from it.
    running: What rollouts move on.
    rollouts: The number of finished ones.
  """

  policy: TrainState
  ref_params: Any
  key: Array
  running: Running
  rollouts: Int[Array, ""]

  def keys(self) -> Keys:
    """Returns the run's random streams."""
    return Keys.of(self.key)

  @classmethod
  def create(
    cls,
    params: Any,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    keep_reference: bool,
    reference: Callable[[Any], Any] = lambda params: params,
    frozen: Sequence[str] = (),
    coefficients: Mapping[str, float] = {},
    reward_moments: Moments | None = None,
    reward_baseline: float | None = None,
    observation_moments: Moments | None = None,
  ) -> "RLState":
    """Returns a new run's state.

    Args:
      params: All that is trained together, and what the passes read besides.
      optimizer: Any optax transformation.
      key: PRNG key of the whole run.
      keep_reference: Whether a copy of the initial policy is kept.
      reference: `params -> policy params`, where there is more than the policy.
      frozen: Entries of `params` that are not trained.
      coefficients: Initial values of what controllers move.
      reward_moments: `Moments.zero()` where rewards are to be standardized.
      reward_baseline: The initial running mean of rewards, where an estimate of advantages needs one.
      observation_moments: `Moments.zero((D,))` where observations are to be normalized.
    """
    # A copy: the update step donates the policy's buffers, and with them anything that shares them.
    ref_params = jax.tree.map(jnp.copy, reference(params)) if keep_reference else None
    policy = TrainState.create(params, optimizer, frozen=frozen, coefficients=coefficients)
    baseline = None if reward_baseline is None else jnp.asarray(reward_baseline, jnp.float32)
    running = Running(jnp.zeros((), jnp.int32), reward_moments, baseline, observation_moments)
    return cls(policy, ref_params, key, running, jnp.zeros((), jnp.int32))
