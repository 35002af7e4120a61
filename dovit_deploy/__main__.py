"""`python -m dovit_deploy` is `dovit`, and the installed commands begin here, too.

The verbs are imported where an interrupt ends them in order already: that takes a good part of a second.
"""

from __future__ import annotations

import sys

from dovit_deploy.interruption import interruptible


def _leave_with(entry: str) -> None:
    """Call the function `entry` of `dovit_deploy.cli`, which leaves the process with the verb's exit code."""
    try:
        with interruptible():
            from dovit_deploy import cli

            getattr(cli, entry)()
    except KeyboardInterrupt:
        # Only while the verbs are imported: what comes later, the command line reports itself.
        from dovit_deploy.errors import Interrupted

        sys.stderr.write("interrupted\n")
        sys.exit(Interrupted.exit_code)


def main() -> None:
    """`dovit VERB ...`."""
    _leave_with("main")


def main_run() -> None:
    """`dovit-run SOURCE ...`."""
    _leave_with("main_run")


def main_export() -> None:
    """`dovit-export CHECKPOINT ...`."""
    _leave_with("main_export")


def main_bench() -> None:
    """`dovit-bench [BUNDLE] ...`."""
    _leave_with("main_bench")


if __name__ == "__main__":
    main()
