"""Regular expressions that are compiled when they are first used.

Python compiles an expression in 0.1 to 1.6 ms. A start would compile about 100 of them, and most requests need few. Expressions
that most requests need are compiled by `re.compile`.
"""

import re
from typing import AnyStr, cast


class LatePattern:
    """Stands for a re.Pattern. The first use compiles it, and raises re.error if it is wrong.

    Its methods and attributes are those of a pattern. It is no instance of re.Pattern, and `re.sub` does not take it.
    """

    def __init__(self, source: str | bytes, flags: int) -> None:
        self.source = source
        self.flags = flags

    def __getattr__(self, name: str) -> object:
        """A method of the pattern. It becomes an attribute, so that the next use finds it at once."""
        if name.startswith("__"):  # `copy` asks before `source` is set
            raise AttributeError(name)
        method = getattr(re.compile(self.source, self.flags), name)
        setattr(self, name, method)
        return method


def regex(source: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """A pattern that its first use compiles."""
    return cast("re.Pattern[AnyStr]", LatePattern(source, flags))
