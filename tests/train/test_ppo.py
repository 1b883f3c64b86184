"""PPO on text with a critic, a KL in the reward and standardized rewards: it learns, and resumes exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.models import heads, presets
from rl_jax.ops import kl
from rl_jax.ops.moments import Moments
from rl_jax.ops.shaping import Shaping
from rl_jax.rollouts import text
from rl_jax.rollouts.collect import make_collect, once
from rl_jax.rollouts.experience import make_experience
from rl_jax.rollouts.outputs import make_outputs
from rl_jax.runs.checkpoint import open_checkpoints
from rl_jax.runs.directory import RunDirectory, read_lines
from rl_jax.sampling.generate import make_generate
from rl_jax.state import ModelOutputs, RLState
from rl_jax.tasks import Task
from rl_jax.tasks.reading import Reader
from rl_jax.tasks.rewards import Reward
from rl_jax.tasks.text import Prompts
from rl_jax.train import loop
from rl_jax.train.control import adaptive_kl, make_control
from rl_jax.train.forward import make_forward, make_values
from rl_jax.train.schedule import Schedule
from rl_jax.train.step import make_train_step


def learner(folder, *, steps, resume=False, stop_updates=None):
  """PPO on a small model of characters: more sevens."""
  model = presets.load("tiny", unroll=2)
  tokenizer, width = model.tokenizer, model.config.embed_dim
  seven = tokenizer("7")["input_ids"][0]

  def sevens(completion_ids, **_):
    return [ids.count(seven) / 6 for ids in completion_ids]

  task = Task("sevens", lambda i: {"prompt": str(i % 10)}, [{"prompt": "1"}], (Reward(sevens, 1.0, "sevens"),))
  critic = heads.scalar_model(model.policy, width)
  plain, values = make_forward(model.policy), make_values(critic)

  def forward(params, sequences) -> ModelOutputs:
    return plain(params["policy"], sequences)._replace(values=values(params["critic"], sequences).tokens)

  optimizer = optax.adam(3e-3)
  algorithm = objectives.load("ppo", value_coef=1.0, lam=0.95)
  generate = make_generate(model.policy, group_size=4, max_new_tokens=6, pad_token=0)
  prompts, schedule = Prompts(task, Reader(tokenizer, (1,)), np.array([1]), 8), Schedule(2, 2)
  complete = text.make_complete(jax.jit(lambda params, *rest: generate(params["policy"], *rest)), prompts.stop_tokens)
  reference = jax.jit(plain)
  outputs = make_outputs(
    {"values", "ref_logp"},
    reference=lambda state, sequences: reference(state.ref_params, sequences).logp,
    values=jax.jit(lambda params, sequences: values(params["critic"], sequences)),
  )
  experience = make_experience(algorithm, on_policy=schedule.on_policy, shaping=Shaping(kl=kl.k1))
  play = once(text.make_sample(prompts, complete, num_prompts=8), text.make_judge(prompts))
  params = {"policy": model.params, "critic": jax.jit(critic.init)(jax.random.key(1))}
  state = RLState.create(
    params,
    optimizer,
    jax.random.key(0),
    keep_reference=True,
    reference=lambda params: params["policy"],
    coefficients={"kl_coef": 0.002},
    reward_moments=Moments.zero(),
  )
  controllers = (adaptive_kl(target=20.0, horizon=1000, samples=32),)
  with RunDirectory(folder, {}, resume=resume) as run, open_checkpoints(folder / "checkpoints") as checkpoints:
    return loop.fit(
      checkpoints.resume(state),
      steps=steps,
      collect=make_collect(play, outputs, jax.jit(experience)),
      update=jax.jit(make_train_step(forward, algorithm.objective, optimizer)),
      run=run,
      checkpoints=checkpoints,
      schedule=schedule,
      stop_updates=stop_updates,
      control=jax.jit(make_control(forward, controllers)),
    )


@pytest.mark.slow
def test_it_learns_and_resumes_exactly(tmp_path):
  whole, _ = learner(tmp_path / "whole", steps=60)
  rows = read_lines(tmp_path / "whole", "metrics.jsonl")
  assert np.mean([row["reward"] for row in rows[:5]]) < 0.1
  assert np.mean([row["reward"] for row in rows[-5:]]) > 0.6
  assert rows[-1]["kl_completion"] > 0.5 and rows[-1]["kl_coef"] != rows[0]["kl_coef"]
  assert np.mean([row["explained_variance"] for row in rows[-5:]]) > 0.2
  learner(tmp_path / "parts", steps=2)
  parts, _ = learner(tmp_path / "parts", steps=4, resume=True)
  short, _ = learner(tmp_path / "short", steps=4)
  for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(short), strict=True):
    if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
      np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_updates_stop_once_they_have_moved_enough(tmp_path):
  seen = []
  learner(tmp_path / "run", steps=2, stop_updates=lambda metrics: seen.append(metrics) or metrics["approx_kl"] > -1)
  rows = read_lines(tmp_path / "run", "metrics.jsonl")
  assert [row["updates"] for row in rows] == [1, 1] and [row["step"] for row in rows] == [1, 2]
  assert len(seen) == 2
