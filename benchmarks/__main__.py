"""``pyrovae`` and ``python -m pyrovae.benchmarks``: the command line, where its extra is there."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("typer", "matplotlib")


def main() -> None:
    """Run the command line, or say what to install for it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"pyrovae: the command line needs {' and '.join(missing)}: pip install 'pyrovae[bench]'"
        )
    try:
        from .cli import app  # a second or two, in which a user may think better of it
    except KeyboardInterrupt:
        print("pyrovae: interrupted", file=sys.stderr)
        sys.exit(130)
    app(prog_name="pyrovae")


if __name__ == "__main__":
    main()
