"""The door to the command line. A script's `ls --json` is answered here, before Typer is loaded, which takes longer."""

from __future__ import annotations

import sys

from tokenmill import catalog


def main() -> None:
    """Entry point of the `tokenmill` command and of `python -m tokenmill`."""
    match sys.argv[1:]:
        case ["ls", "--json"]:
            print(catalog.as_json())
        case ["ls", verb, "--json"] | ["ls", "--json", verb] if verb in catalog.VERBS:
            print(catalog.as_json(verb))
        case _:
            from tokenmill.cli import app

            try:
                app(prog_name="tokenmill")
            except KeyboardInterrupt:  # before a command began
                sys.exit(130)


if __name__ == "__main__":
    main()
