"""Words for errors that come from other libraries."""


def reason(error: BaseException) -> str:
  """Returns the first line of an error's message, or its kind where it has none.

  >>> reason(ValueError("too long\\nsecond line"))
  'too long'
  """
  return next(iter(str(error).splitlines()), type(error).__name__)
