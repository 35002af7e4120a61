"""Makes another model the default one: its entry point, and every line that installs or names the default model.

    python models/make_default.py road-small

Refused, and nothing written, where it has no distribution. What is said about the old one in texts stays: the script
ends with the lines to read.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED_BY = (
    *("dovit_deploy/bundle/installed.py", "Dockerfile", "README.md"),
    *("docs/troubleshooting.md", "docs/README.md"),
)
"""Where the default model's folder is named as such."""
AS_DEFAULT = ("./models/{}", "[the default model](../models/{}/", "separate distribution (`models/{}`)")
"""How it is named there; any other line about it is about this model, default or not."""
GROUP = '[project.entry-points."dovit.models"]\n'


def default_line(name: str) -> str:
    """Of the default model's `pyproject.toml`."""
    return f'default = "dovit_model_{name.replace("-", "_")}"\n'


def default_name(root: Path = ROOT) -> str:
    """The model that is the default one."""
    projects = root.glob("models/*/pyproject.toml")
    (found,) = (
        path.parent.name for path in projects if re.search(r"^default = ", path.read_text("utf-8"), re.MULTILINE)
    )
    return found


def make_default(name: str, root: Path = ROOT) -> list[str]:
    """Change all files; returns what still names the old one, as FILE:LINE.

    Raises:
        FileNotFoundError: `name` has no distribution.
        ValueError: it is the default one already.
    """
    old, project = default_name(root), root / "models" / name / "pyproject.toml"
    if name == old:
        raise ValueError(f"{name} is the default model already")
    changed = {project: project.read_text("utf-8").replace(GROUP, GROUP + default_line(name))}
    before = root / "models" / old / "pyproject.toml"
    changed[before] = before.read_text("utf-8").replace(default_line(old), "")
    left = []
    for path in (root / file for file in INSTALLED_BY):
        text = path.read_text("utf-8")
        for form in AS_DEFAULT:
            text = text.replace(form.format(old), form.format(name))
        changed[path] = text
        left += [
            f"{path.relative_to(root)}:{number}" for number, line in enumerate(text.splitlines(), 1) if old in line
        ]
    # Everything is read before the first file is written.
    for path, text in changed.items():
        path.write_text(text, "utf-8")
    return left


def main(words: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="folder in models/")
    flags = parser.parse_args(words)
    try:
        left = make_default(flags.name)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print("\n".join([f"{flags.name} is the default model", *(f"still says the old one: {line}" for line in left)]))
    print("next: python docs/make_images.py; python -m pytest tests/test_models.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
