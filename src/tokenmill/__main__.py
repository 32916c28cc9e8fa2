"""The door to the command line. A script's `ls --json` is answered here, before Typer is loaded, which takes longer."""

from __future__ import annotations

import sys

from tokenmill import catalog
from tokenmill.streams import silence, steady_streams


def main() -> None:
    """Entry point of the `tokenmill` command and of `python -m tokenmill`."""
    steady_streams()
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
        silence(sys.stdout)
        sys.exit(1)
    except OSError as error:  # a full disk
        silence(sys.stdout)
        print(f"tokenmill: output: {error.strerror}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
