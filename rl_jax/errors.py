"""Words for errors that come from other libraries."""


def reason(error: BaseException) -> str:
  """Returns the first line of an error's message, cut at 300 characters, or its kind where it has none.

  >>> reason(ValueError("too long\\nsecond line"))
  'too long'
  """
  line = next(iter(str(error).splitlines()), type(error).__name__)
  return line if len(line) <= 300 else line[:297] + "..."
