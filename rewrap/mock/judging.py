"""The mock's moderation: a text is flagged for each category that it names. Knows no meaning."""

from collections.abc import Sequence


def named_categories(categories: Sequence[str], text: str) -> list[str]:
    """The categories whose names stand in a text."""
    lower = text.lower()
    return [name for name in categories if name in lower]
