"""The parity of bits, by a chain of steps: `1101:` may be answered by `1001`, the parities of 1, 11, 110 and 1101.

Only the last bit of an answer counts for the reward, so an answer may be of any length; each step that is right is
rewarded as a process reward. The length of the chain is therefore free, and what a loss does to it can be seen.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.tasks.on_device.base import SPECIAL, Answer, Task, Text, Verdict, at_least, join, symbol

CHARACTERS = "01:"


def load(*, bits: int = 6, max_new_tokens: int | None = None) -> Task:
  """Returns the task.

  Args:
    bits: Bits of the longest prompt; lengths from 1 on are equally frequent.
    max_new_tokens: Tokens of an answer, its end included; `bits + 1` by default, more leaves room for longer chains.

  Raises:
    ValueError: If an argument is too small.

  >>> load(bits=4).max_new_tokens
  5
  """
  at_least(1, bits=bits)
  longest = bits + 1 if max_new_tokens is None else max_new_tokens
  at_least(bits + 1, max_new_tokens=longest)

  def draw(key: Array) -> tuple[Text, Text]:
    length_key, bit_key = jax.random.split(key)
    size = jax.random.randint(length_key, (), 1, bits + 1)
    drawn = jax.random.bernoulli(bit_key, shape=(bits,)).astype(jnp.int32)
    steps = Text(SPECIAL + jnp.cumsum(drawn) % 2, size)
    return join([Text(SPECIAL + drawn, size), symbol(CHARACTERS, ":")], bits + 1), steps

  def verify(steps: Text, answer: Answer) -> Verdict:
    room = answer.tokens.shape[-1]
    place = jnp.arange(room)
    right = jnp.pad(steps.tokens, (0, room - bits))
    chain = (place < steps.length) & (place < answer.length) & (answer.tokens == right)
    last = answer.tokens[jnp.maximum(answer.length - 1, 0)]
    solved = answer.terminated & (answer.length > 0) & (last == steps.tokens[steps.length - 1])
    return Verdict(solved.astype(jnp.float32), solved, chain / steps.length)

  return Task(f"parity-{bits}", CHARACTERS, bits + 1, longest, draw, verify, lambda steps: steps, 1.0, 0.5)
