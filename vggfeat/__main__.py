"""`python -m vggfeat`, and the `vggfeat` command that is installed."""

from __future__ import annotations

from vggfeat.core.signals import process_of_a_command


def main() -> None:
    """Load the command line and do what it says."""
    with process_of_a_command():
        from vggfeat.cli import main as command_line

        command_line()


if __name__ == "__main__":
    main()
