"""The door to the command line. A script's `ls --json` is answered here, before Typer is loaded, which takes longer."""

from __future__ import annotations

import os
import sys

from tokenmill import catalog


def main() -> None:
    """Entry point of the `tokenmill` command and of `python -m tokenmill`."""
    match sys.argv[1:]:
        case ["ls", "--json"]:
            _tell(catalog.as_json())
        case ["ls", verb, "--json"] | ["ls", "--json", verb] if verb in catalog.VERBS:
            _tell(catalog.as_json(verb))
        case _:
            from tokenmill.cli import app

            try:
                app(prog_name="tokenmill")
            except KeyboardInterrupt:  # before a command began
                sys.exit(130)


def _tell(text: str) -> None:
    """Print, unless nobody reads on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
        sys.exit(1)


if __name__ == "__main__":
    main()
