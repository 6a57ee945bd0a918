"""`python -m vggfeat` is the `vggfeat` command."""

from vggfeat.cli import main

if __name__ == "__main__":
    main()
