"""An on-device task as a host task, for loops that draw text and compute rewards on the host."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rl_jax.tasks.base import Row
from rl_jax.tasks.base import Task as HostTask
from rl_jax.tasks.on_device import base
from rl_jax.tasks.rewards import Reward


def to_host(task: base.Task, *, key: jax.Array, batch: int, evaluation_size: int = 256) -> HostTask:
  """Returns the host task whose rows are the problems that a compiled run with this key draws.

  Its tokenizer is `models.presets.character_tokenizer(task.characters)`.

  Args:
    task: A task on the device.
    key: The run's stream of problems, `RLState.keys().problems`.
    batch: Prompts a rollout.
    evaluation_size: Problems to evaluate on.

  >>> from rl_jax.tasks.on_device import stopping
  >>> host = to_host(stopping.load(), key=jax.random.key(0), batch=2)
  >>> host.row(0)["prompt"], len(host.evaluation)
  ('7:', 256)
  """
  draw = jax.jit(lambda key: base.sample(task, key, batch))
  verify = jax.jit(task.verify)

  def rows(problems: base.Problems) -> list[Row]:
    prompts = base.decode(task, problems.prompts, problems.prompt_mask)
    data = jax.device_get(problems.data)
    return [{"prompt": text, "data": jax.tree.map(lambda x, i=i: x[i], data)} for i, text in enumerate(prompts)]

  def row(index: int) -> Row:
    first = index // batch * batch
    return rows(draw(jax.random.fold_in(key, first)))[index - first]

  def judge(completion_ids: Sequence[Sequence[int]], data: Sequence) -> list[base.Verdict]:
    verdicts = []
    for ids, datum in zip(completion_ids, data, strict=True):
      if len(ids) > task.max_new_tokens:
        raise ValueError(f"answers to {task.name!r} have at most {task.max_new_tokens} tokens, got {len(ids)}")
      terminated = len(ids) > 0 and ids[-1] == base.EOS
      tokens = np.full(task.max_new_tokens, base.PAD, np.int32)
      tokens[: len(ids)] = ids
      answer = base.Answer(jnp.asarray(tokens), jnp.int32(len(ids) - terminated), jnp.bool_(terminated))
      verdicts.append(verify(datum, answer))
    return jax.device_get(verdicts)

  def reward(completion_ids: Sequence[Sequence[int]], data: Sequence, **_) -> list[float]:
    return [float(verdict.reward) for verdict in judge(completion_ids, data)]

  def solved(completion_ids: Sequence[Sequence[int]], data: Sequence, **_) -> list[bool]:
    return [bool(verdict.solved) for verdict in judge(completion_ids, data)]

  evaluation = rows(base.sample(task, jax.random.key(0), evaluation_size))
  return HostTask(task.name, row, evaluation, (Reward(reward, 1.0, task.name),), solved)
