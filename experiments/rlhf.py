"""The whole of RLHF on data that the script makes: demonstrations, preferences, a reward model, PPO.

    python -m experiments.rlhf                          # a small model from scratch
    python -m experiments.rlhf --resume runs/rlhf       # stages that are done are not done again
    python -m experiments.rlhf --model smollm2 --sft-steps 25 --sft-rate 5e-5 --pairs 600 --reward-steps 30 \
      --reward-rate 2e-5 --ppo-steps 12 --ppo-prompts 16 --ppo-rate 5e-6 --critic-rate 2e-5    # from SmolLM2-135M

Prompts such as `max(3,1,4,1,5,2)=` may be answered in few words or many, rightly or wrongly. A rule says how good an
answer is: 1 if it ends in the right number, less 0.01 a character. The policy never sees the rule: it learns from
demonstrations of all styles (SFT), then two sampled answers to a prompt are compared by the rule, a reward model learns
from these preferences, and PPO raises its score, with a critic that starts from it and a KL to the SFT model in the
reward. Every stage has prompts of its own, which no other one sees. What the rule says of the answers is logged beside
the learned reward: where the two part, the reward model is over-optimized.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments import ppo, reward_model, sft
from rl_jax.analysis.figures import pyplot
from rl_jax.models import presets
from rl_jax.runs.directory import read_lines
from rl_jax.runs.settings import command_line, require_at_least, run_script
from rl_jax.sampling.generate import make_generate
from rl_jax.sampling.samplers import SamplingParams
from rl_jax.tasks import text
from rl_jax.tasks.reading import Reader, prompt_tokens

MODULE = "experiments.rlhf"
NEW_TOKENS = 28


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "small"  # small (from scratch), smollm2, tiny, a folder in Hugging Face's format, or a .gguf file
  run_dir: str = "runs/rlhf"  # data, the stages' runs, tables and figures
  resume: bool = False  # go on in run_dir; as a flag, the folder, whose settings are taken
  demonstrations: int = 10000  # prompts of SFT
  right: float = 0.7  # share of the demonstrations that are right
  sft_steps: int = 800  # updates of SFT
  sft_rate: float = 2e-3  # learning rate of SFT, about 5e-5 for a model that is trained already
  pairs: int = 10000  # prompts of the reward model, with two sampled answers each
  reward_steps: int = 500  # updates of the reward model
  reward_rate: float = 5e-4  # learning rate of the reward model
  ppo_data: int = 2000  # prompts of PPO, 64 of them held out
  ppo_steps: int = 100  # rollouts of PPO
  ppo_prompts: int = 32  # prompts a rollout
  ppo_rate: float = 1e-4  # learning rate of the policy
  critic_rate: float = 3e-4  # learning rate of the critic
  kl_coef: float = 0.1  # weight of the KL in the reward
  seed: int = 0  # seed of everything random


def main(config: Config) -> None:
  require_at_least(config, 65, ("ppo_data",))
  require_at_least(config, 1, ("demonstrations", "sft_steps", "pairs", "reward_steps", "ppo_steps"))
  require_at_least(config, 0, ("seed",))
  if config.kl_coef <= 0:
    raise ValueError(f"kl_coef must be positive, got {config.kl_coef}; a tiny one measures the KL and weighs nothing")
  if not 0 < config.right <= 1:
    raise ValueError(f"right must be above 0 and at most 1, got {config.right}")
  if config.demonstrations + config.pairs + config.ppo_data > 50_000:  # few prompts have a small right answer
    raise ValueError("demonstrations, pairs and ppo_data must be at most 50000 together")
  folder = Path(config.run_dir).resolve()  # by which the stages name each other's models
  of_sft, of_reward_model, of_ppo = stages(folder, config)
  for settings in (of_sft, of_reward_model, of_ppo):
    settings.check()
  if folder.exists() and any(folder.iterdir()) and not config.resume:
    raise ValueError(
      f"run directory {config.run_dir!r} is not empty; choose a new --run-dir, or go on: --resume {folder}"
    )
  folder.mkdir(parents=True, exist_ok=True)
  same_settings(folder / "config.json", config)
  rng = np.random.default_rng(config.seed)
  rows = ask(rng, config.demonstrations + config.pairs + config.ppo_data)
  of_pairs = rows[config.demonstrations :][: config.pairs]
  write(folder / "demonstrations.jsonl", demonstrate(rng, rows[: config.demonstrations], config))
  write(folder / "prompts.jsonl", rows[-config.ppo_data :])

  try:
    stage(sft, of_sft)
    if not (folder / "preferences.jsonl").exists():
      write(folder / "preferences.jsonl", compare(of_reward_model.model, of_pairs, config))
    stage(reward_model, of_reward_model)
    stage(ppo, of_ppo)
  except SystemExit:  # a stage was stopped, and names the command that goes on with it alone
    sys.exit(f"stopped; go on with\n  {command_line(MODULE, config, resume=True)}")
  report(folder)


def stages(folder: Path, config: Config) -> tuple[sft.Config, reward_model.Config, ppo.Config]:
  """The settings of SFT, the reward model and PPO."""
  model, judge = str(folder / "sft" / "model"), str(folder / "reward_model" / "model")
  common: Any = dict(checkpoint_every=0, seed=config.seed, resume=True)
  of_sft = sft.Config(
    data=str(folder / "demonstrations.jsonl"),
    model=config.model,
    run_dir=str(folder / "sft"),
    steps=config.sft_steps,
    num_rows=16,
    max_tokens=128,
    learning_rate=config.sft_rate,
    **common,
  )
  of_reward_model = reward_model.Config(
    data=str(folder / "preferences.jsonl"),
    model=model,
    run_dir=str(folder / "reward_model"),
    steps=config.reward_steps,
    num_rankings=32,
    max_tokens=64,
    learning_rate=config.reward_rate,
    **common,
  )
  of_ppo = ppo.Config(
    model=model,
    reward_model=judge,
    critic="reward",
    run_dir=str(folder / "ppo"),
    task=str(folder / "prompts.jsonl"),
    task_options=("evaluation_size=64",),
    rewards=(f"{MODULE}:rule",),
    reward_weights=(0.0,),
    steps=config.ppo_steps,
    num_prompts=config.ppo_prompts,
    max_prompt_tokens=32,
    max_new_tokens=NEW_TOKENS,
    learning_rate=config.ppo_rate,
    critic_rate=config.critic_rate,
    kl_coef=config.kl_coef,
    **common,
  )
  return of_sft, of_reward_model, of_ppo


def same_settings(path: Path, config: Config) -> None:
  """Writes the settings, or says which ones differ from those that the folder was made with."""
  settings = dataclasses.asdict(config) | {"resume": False, "run_dir": ""}
  if path.exists() and (saved := json.loads(path.read_text())) != settings:
    changed = [name for name in settings if saved.get(name) != settings[name]]
    raise ValueError(f"{str(path.parent)!r} holds a run with other settings: {', '.join(changed)}")
  path.write_text(json.dumps(settings, indent=2) + "\n")


def stage(module: Any, config: Any) -> None:
  """Runs a stage, unless its model is there already."""
  folder = Path(config.run_dir)
  print(f"\n== {folder.name}", flush=True)
  done = folder.with_suffix(".done")
  if done.exists():
    print(f"done already: {folder / 'model'}")
    return
  module.main(config)
  done.touch()


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def ask(rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
  """Different prompts in random order, with a right and a wrong answer: 4 to 9 are right about equally often."""
  rows = {}
  while len(rows) < count:
    largest = int(rng.integers(4, 10))
    numbers = rng.permutation([largest, *rng.integers(0, largest + 1, 5)]).tolist()
    others = [number for number in numbers if number != largest]
    prompt = f"max({','.join(map(str, numbers))})="
    if others:
      rows[prompt] = {"prompt": prompt, "answer": str(largest), "wrong": str(rng.choice(others))}
  found = list(rows.values())
  return [found[i] for i in rng.permutation(count)]


def demonstrate(rng: np.random.Generator, rows: Sequence[dict[str, Any]], config: Config) -> Iterator[dict[str, Any]]:
  """Answers in four styles, some of them wrong."""
  for row in rows:
    number = row["answer"] if rng.random() < config.right else row["wrong"]
    styles = (number, f"it is {number}", f"the largest is {number}", f"I think that it is {number}")
    yield {"prompt": row["prompt"], "completion": styles[rng.integers(4)]}


def rule(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
  """What is wanted: 1 for an answer that ends in the right number, less 0.01 a character.

  >>> rule(completions=["42", "it is 42", "41"], answer=["42", "42", "42"])
  [0.98, 0.92, -0.02]
  """
  found = [re.search(r"(\d+)\s*$", completion) for completion in completions]
  right = [match is not None and match[1] == each for match, each in zip(found, answer, strict=True)]
  return [round(is_right - 0.01 * len(each), 4) for is_right, each in zip(right, completions, strict=True)]


def compare(model_folder: str, rows: list[dict[str, Any]], config: Config) -> Iterator[dict[str, Any]]:
  """Two sampled answers to each prompt, the better one by the rule first; equally good ones are left out."""
  model = presets.load(model_folder)
  reader = Reader(model.tokenizer, model.eos_tokens, vocab_size=model.config.vocab_size)
  stop_tokens = text.stop_tokens(reader)
  pad_token = text.pad_token(model.tokenizer)
  sizes: Any = dict(group_size=2, max_new_tokens=NEW_TOKENS, known_tokens=model.known_tokens)
  generate = jax.jit(make_generate(model.policy, pad_token=pad_token, **sizes))
  size = 100
  filled = rows + rows[:1] * (-len(rows) % size)  # batches of one size
  tokens, mask = text.pad([prompt_tokens(reader, row["prompt"]) for row in filled], pad_token)
  for start in track(range(0, len(rows), size), description="sampling pairs", transient=True):
    part, key = slice(start, start + size), jax.random.fold_in(jax.random.key(config.seed), start)
    out = jax.device_get(generate(model.params, tokens[part], mask[part], stop_tokens, key, SamplingParams()))
    for row, ids, real in zip(rows[part], out.tokens, out.mask, strict=False):
      answers = text.decode(model.tokenizer, ids, real)
      first, second = rule(completions=answers, answer=[row["answer"]] * 2)
      if first != second and all(answers):
        better = int(second > first)
        yield {"prompt": row["prompt"], "chosen": answers[better], "rejected": answers[1 - better]}


def report(folder: Path) -> None:
  """Prints answers before and after PPO, and draws the learned reward and the rule against rollouts and KL."""
  rows = read_lines(folder / "ppo", "metrics.jsonl")
  learned, true = ([row[f"reward/{name}"] for row in rows] for name in ("learned", "rule"))
  divergence = [row["kl_completion"] for row in rows]
  plt = pyplot()
  figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
  for axis, x, name in ((axes[0], range(1, len(rows) + 1), "rollout"), (axes[1], divergence, "KL [nats a completion]")):
    other = axis.twinx()
    style: Any = dict(marker=".", linestyle="none") if name != "rollout" else {}
    axis.plot(x, learned, color="tab:blue", label="learned reward", **style)
    other.plot(x, true, color="tab:orange", label="the rule", **style)
    axis.set_xlabel(name)
    axis.set_ylabel("learned reward", color="tab:blue")
    other.set_ylabel("the rule", color="tab:orange")
    axis.grid(alpha=0.3)
  figure.tight_layout()
  figure.savefig(folder / "rlhf.png", dpi=120)
  plt.close(figure)
  answers = read_lines(folder / "ppo", "evaluation_samples.jsonl")
  end = answers[-1]["step"]
  title = "greedy answers to prompts that no stage has seen"
  table = Table("prompt", "after SFT", "the rule", "after PPO", "the rule", title=title)
  pairs = zip(*([row for row in answers if row["step"] == step] for step in (0, end)), strict=True)
  for before, after in list(pairs)[:8]:
    old, new = (f"{row['rewards']['rule']:.2f}" for row in (before, after))
    cells = (before["completion"], old, after["completion"], new)
    table.add_row(before["prompt"], *cells)
  Console().print(table)
  tenth = max(len(rows) // 10, 1)
  for name, values in (("learned reward", learned), ("the rule", true), ("KL [nats a completion]", divergence)):
    first, last = np.mean(values[:tenth]), np.mean(values[-tenth:])
    print(f"{name}: {first:.3f} in the first tenth of PPO, {last:.3f} in the last")
  print(f"figure: {folder / 'rlhf.png'}")


if __name__ == "__main__":
  run_script(
    main,
    Config,
    module=MODULE,
    description=__doc__,
    kept="finished stages are kept, and --resume goes on with the others",
  )
