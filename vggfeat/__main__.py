"""`python -m vggfeat`, and the `vggfeat` command that is installed."""

from __future__ import annotations

import sys

from vggfeat.core.platform_problem import PLATFORM_PROBLEM


def main() -> None:
    """Load the command line and do what it says; end with exit code 2 where there is no Linux."""
    if PLATFORM_PROBLEM:
        sys.stderr.write(f"vggfeat: {PLATFORM_PROBLEM}\n")
        sys.exit(2)
    from vggfeat.core.signals import process_of_a_command

    with process_of_a_command():
        from vggfeat.core.resources import limit_threads

        limit_threads()
        from vggfeat.cli import main as command_line

        command_line()


if __name__ == "__main__":
    main()
