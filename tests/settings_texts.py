"""The texts that are made from the table of settings: .env.example, and the table of docs/settings.md.

`python tests/settings_texts.py` writes both, after a setting was added or changed.
"""

import re
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
sys.path.insert(0, str(ROOT))

from rewrap.config.settings import GROUPS, Settings, default_text  # noqa: E402

ENV_EXAMPLE = ROOT / ".env.example"
TABLE_FILE = ROOT / "docs" / "settings.md"
TABLE = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)
HEAD = """\
# All settings with their defaults. Copy this file to .env, and remove the # in front of a setting to change it.
# The environment wins over .env, and flags win over both. Lists are separated by commas.
# A comment may follow a value after a space (but not in a file for docker's --env-file).
# NAME_FILE is the path of a file that contains the value of NAME, such as a secret of Docker or Kubernetes.
"""


def env_example() -> str:
    """The whole of .env.example."""
    specs = {spec.name: spec for spec in fields(Settings)}
    lines = [HEAD]
    for title, names in GROUPS.items():
        lines.append(f"\n# ---- {title} ----\n")
        for name in names:
            about = textwrap.wrap(specs[name].metadata["about"], 98, break_on_hyphens=False)
            lines += [f"# {line}" for line in about]
            lines.append(f"#{name.upper()}={default_text(specs[name])}")
            if specs[name].metadata.get("file"):
                lines.append(f"#{name.upper()}_FILE=")
            lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def settings_table() -> str:
    """The rows of Markdown between the marks, with a table for each group."""
    specs = {spec.name: spec for spec in fields(Settings)}
    lines: list[str] = []
    for title, names in GROUPS.items():
        lines += ["", f"| {title} | default | |", "|---|---|---|"]
        for name in names:
            default = default_text(specs[name])
            shown = f"`{default}`" if default else ""
            about = specs[name].metadata["about"].replace("|", "\\|")
            names_shown = f"`{name.upper()}`"
            if specs[name].metadata.get("file"):
                names_shown += f", `{name.upper()}_FILE`"
            lines.append(f"| {names_shown} | {shown} | {about} |")
    return "\n".join([*lines, "", ""])


def with_table(document: str) -> str:
    """A document with the current table between its marks. Raises ValueError if it has no marks."""
    if not TABLE.search(document):
        raise ValueError("there are no marks <!-- settings -->")
    return TABLE.sub(lambda _: settings_table(), document, count=1)


if __name__ == "__main__":
    ENV_EXAMPLE.write_text(env_example())
    TABLE_FILE.write_text(with_table(TABLE_FILE.read_text()))
