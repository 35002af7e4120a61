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

from dovit_deploy.files import write_text

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
    """The model that is the default one; ValueError where it is not one."""
    found = _defaults(root)
    if len(found) != 1:
        raise ValueError(f"default models: {', '.join(found) or 'none'}; one is needed")
    return found[0]


def _defaults(root: Path) -> list[str]:
    projects = sorted(root.glob("models/*/pyproject.toml"))
    return [path.parent.name for path in projects if re.search(r"^default = ", path.read_text("utf-8"), re.MULTILINE)]


def make_default(name: str, root: Path = ROOT) -> list[str]:
    """Change all files; returns what still names the old one, as FILE:LINE.

    Raises:
        FileNotFoundError: `name` has no distribution.
        ValueError: it is the default one already, or its distribution is of another model.
    """
    project = root / "models" / name / "pyproject.toml"
    text, own = project.read_text("utf-8"), GROUP + default_line(name)
    if default_line(name).replace("default", name, 1) not in text or GROUP not in text:
        raise ValueError(f"{project}: no distribution of {name}: it has no entry point of that name")
    # Of two, this one among them, the other is the old one: the script was interrupted.
    others = [other for other in _defaults(root) if other != name]
    if not others:
        raise ValueError(f"{name} is the default model already")
    if len(others) > 1:
        raise ValueError(f"default models: {', '.join(others)}; one is needed")
    (old,) = others
    changed, left = {}, []
    for path in (root / file for file in INSTALLED_BY):
        page = path.read_text("utf-8")
        for form in AS_DEFAULT:
            page = page.replace(form.format(old), form.format(name))
        changed[path] = page
        left += [
            f"{path.relative_to(root)}:{number}" for number, line in enumerate(page.splitlines(), 1) if old in line
        ]
    changed[project] = text if own in text else text.replace(GROUP, own)
    before = root / "models" / old / "pyproject.toml"
    changed[before] = before.read_text("utf-8").replace(default_line(old), "")
    # Everything is read before the first file is written, and the old one is forgotten last: what is interrupted can be
    # done again.
    for path, content in changed.items():
        write_text(path, content)
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
