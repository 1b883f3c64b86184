"""Words for errors that come from other libraries."""


def reason(error: BaseException) -> str:
  """Returns the first line of an error's message, cut at 300 characters, or its kind where it has none.

  A line that ends with a colon goes on in the next one.

  >>> reason(ValueError("too long\\nsecond line")), reason(ValueError("field 'x':\\n   must be int"))
  ('too long', "field 'x': must be int")
  """
  lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
  line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
  return line if len(line) <= 300 else line[:297] + "..."
