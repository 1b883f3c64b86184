"""Where rows come from: files and folders of this machine, and data sets of the hub, with their columns renamed."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rl_jax import hub
from rl_jax.tasks import files, forms
from rl_jax.tasks.forms import Form

UNREADABLE = 0.01  # the largest share of rows that cannot be read and are left out


class Rows(NamedTuple):
  """Rows as they stand in their files, but for renamed columns.

  Attributes:
    places: Where each stands, such as "rows.jsonl, line 3".
    rows: One each.
    fingerprint: Identity of the data: the SHA-256 of files, or the commit of a data set.
    name: Name in tables and file names.
  """

  places: list[str]
  rows: list[Any]
  fingerprint: str
  name: str

  @property
  def placed(self) -> list[tuple[str, Any]]:
    """Each row with where it stands."""
    return list(zip(self.places, self.rows, strict=True))

  @classmethod
  def of(cls, placed: Iterable[tuple[str, Any]], name: str = "") -> "Rows":
    """Returns rows that are there already, given with their places.

    >>> Rows.of([("row 1", {"text": "Hi"})]).placed
    [('row 1', {'text': 'Hi'})]
    """
    given = list(placed)
    return cls([place for place, _ in given], [row for _, row in given], "", name)


class Described(NamedTuple):
  """Rows in the form that the library reads, and a line that says how they were read.

  Attributes:
    places: Where each stands.
    rows: What was made of each.
    description: For readers.
  """

  places: list[str]
  rows: list[Any]
  description: str


def read(source: str | Path, *, config: str = "", split: str = "train", rename: str = "") -> Rows:
  """Reads a file, or a split of a data set of the hub. What is on this machine goes before the hub.

  Args:
    source: A `.jsonl`, `.json`, `.csv` (each may be `.gz`) or `.parquet` file, or a name on the hub.
    config: A configuration of a data set on the hub.
    split: A split of one.
    rename: Columns to rename, `old:new`, several with commas between them.

  Raises:
    ValueError: If there is no such file or data set, it cannot be read, or a renamed column is not there.

  >>> import tempfile
  >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
  ...   _ = file.write("q,answer\\n1 + 1?,2\\n")
  ...   file.flush()
  ...   read(file.name, rename="q:question").rows
  [{'question': '1 + 1?', 'answer': '2'}]
  """
  if hub.is_name(str(source)):
    found = hub.data_files(str(source), config=config, split=split)
    paths, name = found.paths, "-".join(filter(None, [str(source).partition("@")[0].replace("/", "-"), found.config]))
    identity = f"{found.commit} {split}"
  else:
    if config or split != "train":
      raise ValueError(f"config and split are of data sets on the hub; {str(source)!r} is none")
    path = Path(source)
    paths, name, identity = [path], path.name.partition(".")[0], files.fingerprint(path)
  renames, own = _renames(rename), paths == [Path(source)]
  places, rows = [], []
  for path in paths:
    for place, row in files.read(path):
      places.append(f"{path if own else path.name}, {place}")
      rows.append(_renamed(row, renames, places[-1]))
  if not rows:
    raise ValueError(f"{str(source)!r} has no rows")
  return Rows(places, rows, identity + (f" {rename}" if rename else ""), name)


def _renames(rename: str) -> dict[str, str]:
  pairs = [[name.strip() for name in pair.split(":")] for pair in rename.split(",")] if rename else []
  if wrong := [":".join(pair) for pair in pairs if len(pair) != 2 or not all(pair)]:
    raise ValueError(f"rename must read old:new,..., got {wrong[0]!r}")
  for names in zip(*pairs, strict=True):
    if twice := [name for name in names if names.count(name) > 1]:
      raise ValueError(f"rename names {twice[0]!r} twice: {rename}")
  return {old: new for old, new in pairs}


def _renamed(row: Any, renames: Mapping[str, str], place: str) -> Any:
  if not renames or not isinstance(row, dict):
    return row
  if missing := [old for old in renames if old not in row]:
    raise ValueError(f"{place}: no column {missing[0]!r} to rename; it has {', '.join(row)}")
  kept = {name: value for name, value in row.items() if name not in renames.values() or name in renames}
  return {renames.get(name, name): value for name, value in kept.items()}


def as_form(found: Rows, among: Sequence[Form], make: Callable[[dict[str, Any]], Any] = lambda row: row) -> Described:
  """Returns rows in the form that the library reads, each as the first form that it has, and says which.

  Published data sets have some rows that cannot be read, such as a conversation in which nobody answers: up to one in a
  hundred is left out, and told of.

  Args:
    found: Rows.
    among: Forms that they may have.
    make: `row of the form -> what is made of it`, or a ValueError.

  Raises:
    ValueError: For the first row that has none of the forms, or cannot be read as one, by its place, if there are more.

  >>> as_form(Rows(["line 1"], [{"question": "1 + 1?"}], "", "sums"), forms.PROMPTS).description
  '1 row read as questions, as chat'
  """
  names: Counter[str] = Counter()
  unread: Counter[str] = Counter()

  def one(row: Any) -> Any:
    files.check_text(row)
    name, converted = forms.read(row, among)
    made = make(converted)
    names[name] += 1
    unread.update(forms.not_shown(row, converted))
    return made

  places, rows, left_out = readable(found.placed, one)
  counts = [f"{count} row{'s' * (count > 1)} read as {name}" for name, count in names.items()]
  not_shown = f"the model does not read {', '.join(unread)}" if unread else ""
  return Described(places, rows, "; ".join(filter(None, [", ".join(counts), not_shown, left_out])))


def readable(placed: Sequence[tuple[str, Any]], make: Callable[[Any], Any]) -> tuple[list[str], list[Any], str]:
  """Returns the places of the rows that can be read, what was made of each, and how many there are of the others.

  Args:
    placed: Rows with their places.
    make: `row -> what is made of it`, or a ValueError.

  Raises:
    ValueError: The first one, with its place, if more than `UNREADABLE` of the rows have one.

  >>> readable([(f"row {number}", number or "x") for number in range(200)], int)[2]
  "1 row left out that cannot be read, such as row 0: invalid literal for int() with base 10: 'x'"
  """
  places, rows, errors = [], [], []
  for place, row in placed:
    try:
      rows.append(make(row))
      places.append(place)
    except ValueError as error:
      errors.append(f"{place}: {error}")
  if len(errors) > UNREADABLE * len(placed):
    more = f" ({len(errors)} of {len(placed)} rows cannot be read; up to one in a hundred is left out)"
    raise ValueError(f"{errors[0]}{more if len(placed) > 1 else ''}")
  count = len(errors)
  told = f"{count} row{'s' * (count > 1)} left out that cannot be read, such as {errors[0]}" if errors else ""
  return places, rows, told
