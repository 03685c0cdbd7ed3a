"""Names of variables that are nearly those of settings. Pure functions; imports nothing of the project."""

from collections.abc import Collection

# Names of other programs for the same things.
NEIGHBOURS = {
    "API_KEY": "API_KEYS",
    "CHAT_API_KEY": "CHAT_KEY",
    "CHAT_API_URL": "CHAT_URL",
    "CORS_ALLOW_ORIGINS": "ALLOW_ORIGINS",
    "CORS_ORIGINS": "ALLOW_ORIGINS",
    "OPENAI_API_URL": "OPENAI_API_BASE",
    "OPENAI_BASE": "OPENAI_API_BASE",
    "OPENAI_URL": "OPENAI_API_BASE",
}
SHORT = 5  # a name of so few letters has other names one letter away: PORT, SORT
PREFIX = 10  # letters of a name that may be the beginning of a setting's


def nearest_setting(name: str, known: Collection[str], *, in_file: bool = False) -> str:
    """The setting that a variable seems to mean; "" if it is one, or resembles none.

    CHAT_ULR -> CHAT_URL, CHATURL -> CHAT_URL, RATE_LIMIT -> RATE_LIMIT_PER_MINUTE, API_KEY -> API_KEYS

    Short names in the environment are those of other programs (SORT, POST), unless letters are swapped. Short names in a
    file `.env` are misspelled.
    """
    if name in known:
        return ""
    if name in NEIGHBOURS:
        return NEIGHBOURS[name]
    if name.upper() in known:
        return name.upper()
    letters = name.replace("_", "")
    for setting in known:
        if letters == setting.replace("_", ""):
            return setting
        if name[:1] != setting[:1] and name[-1:] != setting[-1:]:
            continue  # one edit leaves the first or the last letter: this saves most comparisons
        if one_edit_apart(name, setting, swaps_only=len(setting) <= SHORT and not in_file):
            return setting
    if len(name) >= PREFIX:
        for setting in known:
            if setting.startswith(f"{name}_"):
                return setting
    return ""


def one_edit_apart(name: str, setting: str, *, swaps_only: bool) -> bool:
    """Whether one letter is missing, added or replaced, or two neighbouring letters are swapped."""
    if abs(len(name) - len(setting)) > 1:
        return False
    position = 0
    for left, right in zip(name, setting, strict=False):
        if left != right:
            break
        position += 1
    rest = name[position:]
    wanted = setting[position:]
    swapped = rest[:2] == wanted[:2][::-1] and rest[2:] == wanted[2:]
    if swaps_only:
        return swapped
    replaced = rest[1:] == wanted[1:]
    return swapped or replaced or rest[1:] == wanted or rest == wanted[1:]
