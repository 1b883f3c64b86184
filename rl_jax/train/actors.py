"""What is trained together: a model with or without adapters, actor and critic; and reward models to learn from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rl_jax.devices import Devices
from rl_jax.models import families, heads, lora, presets, scorers
from rl_jax.models.transformer import Policy
from rl_jax.ops.moments import Moments
from rl_jax.state import Forward, Keys, ModelOutputs, RewardModel, RLState, Sequences, Values
from rl_jax.tasks.text import NO_ENDING, Ending
from rl_jax.train.forward import make_forward, make_last_value, make_step_values, make_values


@dataclasses.dataclass(frozen=True)
class Learner:
  """A language model as it is trained: `{"policy": ...}`, or with adapters `{"base": ..., "adapters": ...}`.

  Attributes:
    model: The model without its parameters, which the training state holds.
    base_model: The name of the model that adapters belong to, for their files.
    lora_rank: Above 0 adapters of this rank are trained, alone.
    lora_alpha: Their update is multiplied by `lora_alpha / lora_rank`.
  """

  model: presets.Model
  base_model: str = ""
  lora_rank: int = 0
  lora_alpha: float = 32.0

  @property
  def frozen(self) -> tuple[str, ...]:
    """Entries of the parameters that are not trained."""
    return ("base",) if self.lora_rank else ()

  def policy_params(self, params: Any) -> Any:
    """Returns the model's own parameters, with adapters beside them."""
    if self.lora_rank:
      return lora.attach(params["base"], params["adapters"], alpha=self.lora_alpha)
    return params["policy"]

  def plain_params(self, params: Any) -> Any:
    """Returns the parameters of a plain model, adapters merged, to be saved."""
    if self.lora_rank:
      return lora.merge(params["base"], params["adapters"], alpha=self.lora_alpha)
    return params["policy"]

  def reference_params(self, state: RLState) -> Any:
    """Returns the initial model's: the state's copy of them, or under adapters the base that they are added to."""
    return state.policy.params["base"] if self.lora_rank else state.ref_params

  def init(self, start: Any, keys: Keys) -> dict[str, Any]:
    """Returns what is trained, from the model's own parameters."""
    if self.lora_rank:
      return {"base": start, "adapters": lora.init(keys.adapters, start, rank=self.lora_rank)}
    return {"policy": start}

  def critic(self, start: Any, keys: Keys) -> dict[str, Any]:
    """Returns part of a critic that starts from the same parameters: a copy, or adapters on the same base."""
    if self.lora_rank:
      return {"adapters": lora.init(keys.critic, start, rank=self.lora_rank)}
    return {"backbone": jax.tree.map(jnp.copy, start)}

  def critic_params(self, params: Any, part: Any) -> Any:
    """Returns that critic's backbone."""
    return lora.attach(params["base"], part["adapters"], alpha=self.lora_alpha) if self.lora_rank else part["backbone"]

  def lift(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes of `f(model's parameters, ...)` a function of what is trained."""
    return lambda params, *rest: function(self.policy_params(params), *rest)

  def forward(self, *, temperature: float | jax.Array = 1.0) -> Forward:
    """Returns the policy's forward pass over what is trained."""
    return self.lift(make_forward(self.model.policy, temperature=temperature))

  def reference(
    self, devices: Devices, *, temperature: float | jax.Array = 1.0
  ) -> Callable[[RLState, Sequences], jax.Array]:
    """Returns `(state, sequences) -> the initial model's log-probs`."""
    forward = devices.jit(make_forward(self.model.policy, temperature=temperature))
    return lambda state, sequences: forward(self.reference_params(state), sequences).logp

  def save_model(self, folder: Path, params: Any) -> None:
    """Writes the model, adapters merged, as a folder in Hugging Face's format."""
    presets.save(folder, self.model, jax.jit(self.plain_params)(params))

  def save_scorer(self, folder: Path, params: Any) -> None:
    """Writes the model with the head beside it, `params["head"]`, as a reward model in Hugging Face's format."""
    scorers.save(folder, self.model, jax.jit(self.plain_params)(params), params["head"])

  def save(self, folder: Path, params: Any) -> None:
    """Writes the model as `model/`, and the adapters as `adapters/`."""
    self.save_model(folder / "model", params)
    if self.lora_rank:
      adapters = params["adapters"]
      lora.save_peft(folder / "adapters", adapters, alpha=self.lora_alpha, base_model=self.base_model)


def make_learner(
  model: presets.Model, *, base_model: str = "", lora_rank: int = 0, lora_alpha: float = 32.0
) -> Learner:
  """Returns a model as it is trained; arguments as `Learner`.

  Raises:
    ValueError: For adapters on a model of whose matrices a checkpoint puts several into one tensor.

  >>> make_learner(presets.load("tiny"), lora_rank=2).frozen
  ('base',)
  """
  if lora_rank:
    families.check_adaptable(model.hf.model_type)
  return Learner(model._replace(params=None), base_model, lora_rank, lora_alpha)


def create_state(
  learner: Learner,
  optimizer: optax.GradientTransformation,
  *,
  keep_reference: bool,
  init: Callable[[Any, Keys], dict[str, Any]] | None = None,
  coefficients: Mapping[str, float] = {},
  reward_moments: Moments | None = None,
  needs: Sequence[str] | frozenset[str] = (),
) -> Callable[[Any, jax.Array], RLState]:
  """Returns `(model's parameters, key) -> RLState`, for `Devices.build`: a new run's state.

  Args:
    learner: What is trained.
    optimizer: Any optax transformation.
    keep_reference: Whether the initial model is needed later; under adapters no copy is kept, the base is there.
    init: `(model's parameters, the run's random streams) -> params`, where more is trained than the learner.
    coefficients: Initial values of what controllers move.
    reward_moments: `Moments.zero()` where rewards are to be standardized.
    needs: What an advantage reads; a running mean of rewards begins at 0 where "reward_baseline" is among it.
  """

  def create(start: Any, key: jax.Array) -> RLState:
    return RLState.create(
      (init or learner.init)(start, Keys.of(key)),
      optimizer,
      key,
      keep_reference=keep_reference and not learner.frozen,
      reference=learner.policy_params,
      frozen=learner.frozen,
      coefficients=coefficients,
      reward_moments=reward_moments,
      reward_baseline=0.0 if "reward_baseline" in needs else None,
    )

  return create


class LoadedReward(NamedTuple):
  """A reward model's functions and parameters.

  Attributes:
    model: Its functions.
    params: Its parameters.
    unread: Its padding token where that is an end of sequence too, off which `transformers` reads no score; else None.
  """

  model: Policy
  params: Any
  unread: int | None = None

  def make_reward_model(
    self, devices: Devices, *, step_end: int | None = None, ending: Ending = NO_ENDING
  ) -> RewardModel:
    """Returns `sequences -> scores`, of completions; or of the steps in them, which the token `step_end` ends.

    Args:
      devices: Where it runs.
      step_end: A token, where steps are scored.
      ending: How completions end.
    """
    read = make_last_value(self.model, ending=ending, unread=self.unread)
    if step_end is not None:
      read = make_step_values(self.model, end=step_end, stop_tokens=ending.stops)
    return partial(devices.jit(read), devices.replicate(self.params))


def load_reward_model(folder: str, tokenizer: Any, *, max_tokens: int, remat: bool = False) -> LoadedReward:
  """Loads what experiments.reward_model wrote, or any sequence classifier with one label (`scorers.load`).

  Raises:
    ValueError: If there is no such model, its tokenizer is another one than the policy's, or it reads fewer tokens than
      `max_tokens`.
  """
  backbone, head = scorers.load(folder, remat=remat)
  presets.check_context(backbone, max_tokens)
  if backbone.tokenizer.get_vocab() != tokenizer.get_vocab():
    raise ValueError(
      f"reward model {folder!r} has another tokenizer than the policy, whose tokens it would read; among rewards"
      f" (--rewards {folder}) it reads text"
    )
  params = {"backbone": backbone.params, "head": head}
  scorer = heads.scalar_model(backbone.policy, backbone.config.embed_dim)
  return LoadedReward(scorer, params, scorers.unread(backbone))


class Actors(NamedTuple):
  """Actor and critic as functions of one dict of parameters, a learner's with `critic` or `value_head` beside it.

  Attributes:
    forward: `(params, sequences) -> ModelOutputs`, with values where there is a critic.
    values: `(params, sequences) -> Values`, without log-probs; None without a critic.
    init: `(policy's parameters, the run's random streams) -> params`.
  """

  forward: Forward
  values: Callable[[Any, Sequences], Values] | None
  init: Callable[[Any, Keys], dict[str, Any]]


def make_actors(
  learner: Learner, critic: str, reward: LoadedReward | None, *, temperature: float, bootstrap: bool = False
) -> Actors:
  """Puts actor and critic together.

  Args:
    learner: The policy, and how it is trained.
    critic: "none"; "own", a copy of the policy, or under adapters others on the same base, with a head; "reward", a
      copy of the reward model; "fresh", a model of the policy's shape with random weights; or "shared", a head on the
      policy.
    reward: The reward model, where the critic starts from it.
    temperature: Temperature of every log-prob.
    bootstrap: Whether `values` says what the state after the last token is worth, too.

  Raises:
    ValueError: For another critic, or one from a reward model that is not there.
  """
  if critic == "none":
    return Actors(learner.forward(temperature=temperature), None, learner.init)
  if critic == "shared":
    return _shared(learner, temperature, bootstrap)
  if critic == "reward" and reward is None:
    raise ValueError("critic 'reward' needs a reward model")
  if critic not in ("own", "reward", "fresh"):
    raise ValueError(f"critic must be one of none, own, reward, fresh, shared, got {critic!r}")
  return _apart(learner, critic, reward, temperature, bootstrap)


def _shared(learner: Learner, temperature: float, bootstrap: bool) -> Actors:
  """A value head on the policy's own hidden states."""
  width = learner.model.config.embed_dim
  model = heads.with_value_head(learner.model.policy, width)
  forward, values = make_forward(model, temperature=temperature), make_values(model, with_last=bootstrap)

  def lift(function: Callable[..., Any]) -> Callable[..., Any]:
    def lifted(params: Any, sequences: Sequences) -> Any:
      return function({"policy": learner.policy_params(params), "value_head": params["value_head"]}, sequences)

    return lifted

  def init(start: Any, keys: Keys) -> dict[str, Any]:
    return learner.init(start, keys) | {"value_head": heads.init_head(keys.head, width)}

  return Actors(lift(forward), lift(values), init)


def _apart(learner: Learner, critic: str, reward: LoadedReward | None, temperature: float, bootstrap: bool) -> Actors:
  """A critic of its own: `params["critic"]`."""
  width = learner.model.config.embed_dim
  model = heads.scalar_model(learner.model.policy, width)
  if critic == "reward" and reward is not None:
    model = reward.model
  plain_values, values = make_values(model), make_values(model, with_last=bootstrap)
  forward = learner.forward(temperature=temperature)

  def critic_params(params: Any) -> Any:
    part = params["critic"]
    return {"backbone": learner.critic_params(params, part), "head": part["head"]} if critic == "own" else part

  def both(params: Any, sequences: Sequences) -> ModelOutputs:
    return forward(params, sequences)._replace(values=plain_values(critic_params(params), sequences).tokens)

  def init(start: Any, keys: Keys) -> dict[str, Any]:
    params = learner.init(start, keys)
    if critic == "reward" and reward is not None:
      return params | {"critic": jax.tree.map(jnp.copy, reward.params)}
    if critic == "fresh":
      return params | {"critic": model.init(keys.critic)}
    return params | {"critic": {**learner.critic(start, keys), "head": heads.init_head(keys.head, width)}}

  return Actors(both, lambda params, sequences: values(critic_params(params), sequences), init)
