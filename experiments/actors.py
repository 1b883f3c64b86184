"""What the scripts put together from models: learners with or without adapters, actor and critic, reward models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rl_jax.models import heads, lora, presets
from rl_jax.train.score import Scores, Sequences, Values, make_score, make_values
from rl_jax.train.state import Keys, RLState


class Learner(NamedTuple):
  """A language model as it is trained: `{"policy": ...}`, or with adapters `{"base": ..., "adapters": ...}`.

  Attributes:
    policy: `params -> the model's own parameters`, adapters merged.
    initial: `state -> the initial model's parameters`: a copy, or under adapters the base that they are added to.
    build: `(model's parameters, key) -> params`.
    beside: `(model's parameters, key) -> part`, of another model that starts from the same parameters: a copy of them,
      or adapters of its own on the same base.
    other: `(params, part) -> that model's own parameters`.
    on: `f(model's parameters, ...) -> f(params, ...)`.
    save: `(folder, model, params) -> None`, as `model/` and the adapters as `adapters/`.
    frozen: Entries of `params` that are not trained; with them no copy of the initial model is needed.
  """

  policy: Callable[[Any], Any]
  initial: Callable[[RLState], Any]
  build: Callable[[Any, jax.Array], dict[str, Any]]
  beside: Callable[[Any, jax.Array], dict[str, Any]]
  other: Callable[[Any, Any], Any]
  on: Callable[[Callable[..., Any]], Callable[..., Any]]
  save: Callable[[Path, presets.Model, Any], None]
  frozen: tuple[str, ...]


def make_learner(base_model: str, lora_rank: int, lora_alpha: float) -> Learner:
  """All weights of a model, or with a rank above 0 adapters, whose update is multiplied by `lora_alpha / lora_rank`."""

  def policy(params: Any) -> Any:
    return lora.merge(params["base"], params["adapters"], alpha=lora_alpha) if lora_rank else params["policy"]

  def initial(state: RLState) -> Any:
    return state.policy.params["base"] if lora_rank else state.ref_params

  def build(start: Any, key: jax.Array) -> dict[str, Any]:
    return {"base": start, "adapters": lora.init(key, start, rank=lora_rank)} if lora_rank else {"policy": start}

  def beside(start: Any, key: jax.Array) -> dict[str, Any]:
    if lora_rank:
      return {"adapters": lora.init(key, start, rank=lora_rank)}
    return {"backbone": jax.tree.map(jnp.copy, start)}

  def other(params: Any, part: Any) -> Any:
    return lora.merge(params["base"], part["adapters"], alpha=lora_alpha) if lora_rank else part["backbone"]

  def on(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, *rest: function(policy(params), *rest)

  def save(folder: Path, model: presets.Model, params: Any) -> None:
    presets.save(folder / "model", model, jax.jit(policy)(params))
    if lora_rank:
      lora.save_peft(folder / "adapters", params["adapters"], alpha=lora_alpha, base_model=base_model)

  return Learner(policy, initial, build, beside, other, on, save, ("base",) if lora_rank else ())


def create_state(
  start: Any, key: jax.Array, *, learner: Learner, tx: optax.GradientTransformation, with_reference: bool
) -> RLState:
  """A new run's state around a model's parameters. Its reference is a copy of them, or the base under adapters."""
  params, copy = learner.build(start, Keys.of(key).adapters), with_reference and not learner.frozen
  return RLState.create(params, tx, key, keep_reference=copy, reference=learner.policy, frozen=learner.frozen)


class RewardModel(NamedTuple):
  """A reward model's functions and parameters."""

  model: heads.ScalarModel
  params: Any


def load_reward_model(folder: str, tokenizer: Any, *, max_tokens: int, remat: bool = False) -> RewardModel:
  """Loads what experiments.reward_model wrote.

  Raises:
    ValueError: If there is no such model, its tokenizer is another one than the policy's, or it reads fewer tokens than
      `max_tokens`.
  """
  backbone = presets.load(folder, remat=remat)
  presets.check_context(backbone, max_tokens)
  if backbone.tokenizer.get_vocab() != tokenizer.get_vocab():
    raise ValueError(f"reward model {folder!r} has another tokenizer than the policy: it reads the policy's tokens")
  width = backbone.config.embed_dim
  params = {"backbone": backbone.params, "head": heads.load_head(folder, width)}
  return RewardModel(heads.scalar_model(backbone.policy, width), params)


class Actors(NamedTuple):
  """Actor and critic as functions of one dict of parameters, a learner's with `critic` or `value_head` beside it.

  Attributes:
    score: `(params, sequences) -> Scores`, with values where there is a critic.
    values: `(params, sequences) -> Values`, without log-probs; None without a critic.
    build: `(policy's parameters, key) -> params`.
  """

  score: Callable[[Any, Sequences], Scores]
  values: Callable[[Any, Sequences], Values] | None
  build: Callable[[Any, jax.Array], dict[str, Any]]


def assemble(
  model: presets.Model,
  learner: Learner,
  critic: str,
  reward: RewardModel | None,
  *,
  temperature: float,
  bootstrap: bool = False,
) -> Actors:
  """Puts actor and critic together.

  Args:
    model: Of the policy.
    learner: How it is trained.
    critic: "none"; "own", a copy of the policy, or under adapters others on the same base, with a head; "reward", a
      copy of the reward model; "fresh", a model of the policy's shape with random weights; or "shared", a head on the
      policy.
    reward: The reward model, where the critic starts from it.
    temperature: Of every log-prob.
    bootstrap: Whether `values` says what the state after the last token is worth, too.
  """
  width = model.config.embed_dim
  plain_score = make_score(model.policy, temperature=temperature)
  shared = heads.with_value_head(model.policy, width)
  shared_score = make_score(shared, temperature=temperature, value=shared.value)
  apart = heads.scalar_model(model.policy, width)
  if critic == "reward" and reward is not None:
    apart = reward.model
  values = make_values(apart)

  def with_head(params: Any) -> Any:
    return {"policy": learner.policy(params), "value_head": params["value_head"]}

  def critic_params(params: Any) -> Any:
    part = params["critic"]
    return {"backbone": learner.other(params, part), "head": part["head"]} if critic == "own" else part

  def score(params: Any, sequences: Sequences) -> Scores:
    if critic == "shared":
      return shared_score(with_head(params), sequences)
    scores = plain_score(learner.policy(params), sequences)
    return scores if critic == "none" else scores._replace(values=values(critic_params(params), sequences).tokens)

  def values_alone(params: Any, sequences: Sequences) -> Values:
    if critic == "shared":
      return make_values(shared, with_last=bootstrap)(with_head(params), sequences)
    return make_values(apart, with_last=bootstrap)(critic_params(params), sequences)

  def build(start: Any, key: jax.Array) -> dict[str, Any]:
    learner_key, critic_key, head_key = jax.random.split(key, 3)
    params, head = learner.build(start, learner_key), apart.init_head(head_key)
    if critic == "shared":
      return params | {"value_head": head}
    if critic == "reward" and reward is not None:
      return params | {"critic": jax.tree.map(jnp.copy, reward.params)}
    if critic == "own":
      return params | {"critic": {**learner.beside(start, critic_key), "head": head}}
    return params | {"critic": apart.init(critic_key)} if critic == "fresh" else params

  return Actors(score, None if critic == "none" else values_alone, build)
