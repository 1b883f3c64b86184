"""Models and data sets by their names on the Hugging Face hub, such as `Qwen/Qwen2.5-0.5B-Instruct` or `name@revision`.

They are cached where everything else of the hub is; HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they
always do. Nothing that is downloaded is run.
"""

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rl_jax.errors import reason

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "additional_chat_templates/*")
OTHERS = ("consolidated*", "*/*.safetensors", "onnx/*", "original/*")  # the same weights in other forms
ROWS = (".parquet", ".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")


class DataFiles(NamedTuple):
  """The files of one split of a data set.

  Attributes:
    paths: On this machine, in order.
    commit: Of the data set.
    split: Its name.
    config: The name of the configuration; empty where there is but one.
  """

  paths: list[Path]
  commit: str
  split: str
  config: str


def is_name(name: str) -> bool:
  """Whether something is a name on the hub, and nothing of that name is here.

  >>> is_name("openai/gsm8k"), is_name("openai/gsm8k@main"), is_name("rows.jsonl"), is_name("a/b/c")
  (True, True, False, False)
  """
  return bool(_NAME.fullmatch(name)) and not Path(name).exists() and not name.endswith((*ROWS, ".gguf", ".py"))


def model_folder(name: str) -> Path:
  """Returns the folder of a model's snapshot, which is named by its commit; downloads what is not here.

  Raises:
    ValueError: If there is no such model, it may not be read, or the hub cannot be reached and it is not cached.
  """
  return _snapshot(name, "model", MODEL_FILES)


def data_files(name: str, *, config: str = "", split: str = "train") -> DataFiles:
  """Returns the files of a data set's split; downloads what is not here.

  Which they are stands in the data set's card, or else in their names: `config/split-*.parquet` and the like.

  Args:
    name: On the hub.
    config: A configuration; needed where there are several and none is the default.
    split: A split.

  Raises:
    ValueError: If there is no such data set, configuration or split, it is made by a script, or it may not be read.
  """
  folder = _snapshot(name, "dataset", ("README.md",))
  names = _file_names(name, folder)
  declared = _card(folder).get("configs") or []
  configs = _configs(declared, names)
  if not config:
    config = _only(name, configs, declared)
  if config not in configs:
    raise ValueError(f"data set {name!r} has no configuration {config!r}; it has {', '.join(configs)}")
  splits = configs[config]
  if split not in splits:
    raise ValueError(f"data set {name!r} has no split {split!r}; it has {', '.join(splits) or 'none'}")
  chosen = sorted(each for each in names if any(fnmatch.fnmatch(each, pattern) for pattern in splits[split]))
  if not chosen:
    raise ValueError(f"data set {name!r}: no file is {', '.join(splits[split])}, as its card says of {split!r}")
  if strange := [each for each in chosen if not each.endswith(ROWS)]:
    raise ValueError(f"data set {name!r}: {strange[0]!r} is none of {', '.join(ROWS)}")
  folder = _snapshot(f"{name.partition('@')[0]}@{folder.name}", "dataset", chosen)
  return DataFiles([folder / each for each in chosen], folder.name, split, config if len(configs) > 1 else "")


def _snapshot(name: str, kind: str, patterns: Sequence[str]) -> Path:
  from huggingface_hub import errors, snapshot_download

  repo, _, revision = name.partition("@")
  what = "data set" if kind == "dataset" else kind
  try:
    return Path(
      snapshot_download(
        repo,
        repo_type=kind,
        revision=revision or None,
        allow_patterns=list(patterns),
        ignore_patterns=list(OTHERS) if kind == "model" else None,
      )
    )
  except errors.GatedRepoError:
    raise ValueError(f"{what} {name!r} is gated: accept its terms on the hub, and set HF_TOKEN") from None
  except errors.RevisionNotFoundError:
    raise ValueError(f"{what} {repo!r} has no revision {revision!r}") from None
  except errors.RepositoryNotFoundError:
    raise ValueError(
      f"unknown {what} {name!r}: nothing of that name is here or on the hub, or HF_TOKEN may not read it"
    ) from None
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
    raise ValueError(
      f"{what} {name!r} is not cached here, and the hub cannot be reached (or HF_HUB_OFFLINE is set)"
    ) from None
  except Exception as error:  # of the hub, its transport, or the disk
    raise ValueError(f"{what} {name!r} cannot be downloaded: {reason(error)}") from None


def _file_names(name: str, folder: Path) -> list[str]:
  """The files of a data set: what the hub lists at the commit, or where it cannot be reached, what is cached of it."""
  from huggingface_hub import HfApi, errors

  try:
    told = HfApi().dataset_info(name.partition("@")[0], revision=folder.name)
    found = [file.rfilename for file in told.siblings or ()]
  except errors.HfHubHTTPError as error:  # the hub has answered, and not with a list
    raise ValueError(f"data set {name!r}: its files cannot be listed ({reason(error)})") from None
  except Exception:  # it cannot be reached, in the words of one transport or another
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    _check_whole(name, found)
  return sorted(found)


def _check_whole(name: str, found: Sequence[str]) -> None:
  """Raises ValueError if shards are missing, which a download that was cut off leaves behind.

  >>> _check_whole("org/data", ["train-00000-of-00002.parquet"])
  Traceback (most recent call last):
  ...
  ValueError: data set 'org/data': train-00001-of-00002.parquet is not cached here, and the hub cannot be reached
  """
  for file in found:
    if shard := _SHARD.search(file):
      for number in range(int(shard[2])):
        wanted = file[: shard.start()] + f"-{number:05d}-of-{shard[2]}" + file[shard.end() :]
        if wanted not in found:
          raise ValueError(f"data set {name!r}: {wanted} is not cached here, and the hub cannot be reached")


def _configs(declared: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
  """The patterns of each split of each configuration, as the card declares them, or else by the files' names."""
  found: dict[str, dict[str, list[str]]] = {}
  for each in declared:
    if files := each.get("data_files"):
      entries = files if isinstance(files, list) else [{"split": "train", "path": files}]
      entries = [entry if isinstance(entry, dict) else {"split": "train", "path": entry} for entry in entries]
      found[each.get("config_name", "default")] = {
        entry.get("split", "train"): [entry["path"]] if isinstance(entry["path"], str) else list(entry["path"])
        for entry in entries
      }
  return found or _by_names(names)


def _by_names(names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
  """`config/split-00000-of-00001.parquet`, `data/split.jsonl`, `split.csv`.

  >>> _by_names(["main/train-00000-of-00001.parquet", "main/test.jsonl", "README.md"])
  {'main': {'train': ['main/train-00000-of-00001.parquet'], 'test': ['main/test.jsonl']}}
  """
  found: dict[str, dict[str, list[str]]] = {}
  for name in names:
    folder, _, file = name.rpartition("/")
    if name.endswith(ROWS) and file not in (
      "dataset_infos.json",
      "dataset_info.json",
      "dataset_dict.json",
      "state.json",
    ):
      shard = _SHARD.search(file)
      split = file[: shard.start()] if shard else file.partition(".")[0]
      config = folder if folder not in ("", "data") else "default"
      found.setdefault(config, {}).setdefault(split, []).append(name)
  for config, splits in found.items():
    if not any(split.startswith(("train", "test", "validation", "dev", "eval")) for split in splits):
      found[config] = {"train": sorted(name for each in splits.values() for name in each)}  # no file names a split
  return found


def _card(folder: Path) -> dict[str, Any]:
  from huggingface_hub.repocard import metadata_load

  path = folder / "README.md"
  try:
    return (metadata_load(path) if path.is_file() else None) or {}
  except Exception as error:  # a card's header that is no YAML
    raise ValueError(f"{path}: the header of the card cannot be read ({reason(error)})") from None


def _only(name: str, configs: dict[str, Any], declared: Sequence[dict[str, Any]]) -> str:
  if not configs:
    raise ValueError(f"data set {name!r} has no files of rows ({', '.join(ROWS)}); those made by a script are not read")
  for config in (*(each.get("config_name") for each in declared if each.get("default")), "default"):
    if config in configs:
      return config
  if len(configs) > 1:
    raise ValueError(f"data set {name!r} has several configurations: choose one with config=, of {', '.join(configs)}")
  return next(iter(configs))
