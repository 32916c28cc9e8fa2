"""The command line. Each command imports what it needs when it runs: `tokenmill ls` loads no torch."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tokenmill import __version__, catalog, method_files
from tokenmill.errors import InputError, SpecError, TokenmillError, did_you_mean
from tokenmill.method_files import split_specs
from tokenmill.paths import expanded
from tokenmill.streams import silence, steady_streams

if TYPE_CHECKING:
    from rich.console import Console

    from tokenmill.method import Recipe

log = logging.getLogger(__name__)

TRACKS = ("cache", "decode", "depth")
REPRODUCTIONS = Path("tokenmill-runs") / "reproduce"
PROBED = 1 << 20  # tokens that a probe reads at most
EXTRAS = {"pydantic": "measure", "scipy": "measure", "gguf": "default-model", "accelerate": "default-model"}


class _Friendly(TyperGroup):
    """A mistake of the user's is one line on stderr and exit code 2; Ctrl-C is 130. A bug keeps its traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        alone, extra["standalone_mode"] = extra.get("standalone_mode", True), False
        if not alone:
            return super().main(*args, **extra)
        steady_streams()
        try:
            code = super().main(*args, **extra)
            sys.stdout.flush()
        except _Usage as error:  # an option or argument that is none
            if not error.format_message():  # no command at all: the help is shown
                error.show()
            else:
                _complain(_one_line(error.format_message()))
            sys.exit(error.exit_code)
        except typer.Abort:
            _complain("stopped")
            sys.exit(130)
        except BrokenPipeError:  # nobody reads on
            silence(sys.stdout)
            sys.exit(1)
        except OSError as error:
            silence(sys.stdout)
            _complain(_one_line(f"{error.filename or 'output'}: {error.strerror or error}"))
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TokenmillError as error:
            _complain(_one_line(error))
            log.debug("the error in full:", exc_info=error)
            raise typer.Exit(2) from None
        except UnicodeError as error:
            _complain(f"text that is not UTF-8: {_one_line(error)[:200]}")
            raise typer.Exit(2) from None
        except MemoryError:
            _complain("not enough memory; use a smaller model, fewer or shorter texts, or --weights int8")
            raise typer.Exit(2) from None
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            _complain(f"this command needs {error.name}; run: pip install 'tokenmill[{EXTRAS[error.name]}]'")
            raise typer.Exit(2) from None
        except KeyboardInterrupt as interrupt:
            _complain(str(interrupt) or "stopped")
            raise typer.Exit(130) from None


# Typer brings its own copy of Click, under a name that changes.
_Usage: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    cls=_Friendly,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Token methods on one contract, on your own model: list, run, compare, reproduce.",
)

Model = Annotated[str, typer.Option(help="smollm2 (the default model), a Hugging Face name, or a local folder.")]
Weights = Annotated[
    str, typer.Option(help="Number format of the weights on a CPU: float32, bfloat16, float16, int8, int4 or auto.")
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Before = Annotated[
    Path | None, typer.Option("--input", help="A file of one text or conversation that goes before the prompt.")
]
Chat = Annotated[bool, typer.Option("--chat", help="The prompt is a user's message, in the model's chat format.")]
Template = Annotated[str | None, typer.Option("--chat-template", help="The same, by the template of this name.")]
Input = Annotated[
    Path | None,
    typer.Option("--input", help="Texts, prompts or conversations of your own: JSON Lines, CSV, text, a folder."),
]


Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr; errors with their traceback.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=os.cpu_count() or 1, help="Threads that compute; one for each core if not given."),
]


def _computes(command: Callable[..., None]) -> Callable[..., None]:
    """A command that runs models: it takes --verbose and --threads too."""

    @functools.wraps(command)
    def call(*args: Any, verbose: bool, threads: int | None, **options: Any) -> None:
        _log_to_stderr(verbose)
        if threads is not None:
            _use_threads(threads)
        command(*args, **options)

    signature = inspect.signature(command, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter("verbose", kind, default=False, annotation=Verbose),
        inspect.Parameter("threads", kind, default=None, annotation=Threads),
    ]
    call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in (*signature.parameters.values(), *more)}
    return call


def _log_to_stderr(verbose: bool) -> None:
    """Notes of the package on stderr, one line each."""
    logger = logging.getLogger("tokenmill")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    logger.handlers[0].setFormatter(logging.Formatter("tokenmill: %(message)s"))


def _use_threads(count: int) -> None:
    """For torch, which may be loaded already, and for numba, which takes as many as torch."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
    log.debug("computing with %d threads", count)


def _refuse(ctx: typer.Context, why: str, *names: str, unless: bool = False) -> None:
    """An option that was given and has no effect is a mistake. `why` says so, without the option's name."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if not unless and source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT"):
            raise InputError(f"--{name.replace('_', '-')} has no effect: {why}")


def _methods(begun: str) -> list[str]:
    """For the shell's completion."""
    return [name for name in catalog.methods() if name.startswith(begun)]


def _explainers(begun: str) -> list[str]:
    return [name for name in catalog.methods("explain") if name.startswith(begun)]


def _verbs(begun: str) -> list[str]:
    return [verb for verb in catalog.VERBS if verb.startswith(begun)]


def _tracks(begun: str) -> list[str]:
    return [track for track in TRACKS if track.startswith(begun)]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tokenmill {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def ls(
    verb: Annotated[
        str | None, typer.Argument(help="Only this verb: " + ", ".join(catalog.VERBS), autocompletion=_verbs)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All fields, for scripts.")] = False,
) -> None:
    """List the methods."""
    if as_json:
        print(catalog.as_json(verb))
        return
    found = [catalog.find(name) for name in catalog.methods(verb)]
    from rich.table import Table

    table = Table("method", "verb", "year", "what it does", box=None, pad_edge=False)
    for entry in found:
        table.add_row(entry.name, entry.verb, str(entry.year or ""), entry.summary)
    if found:
        _console().print(table)
    else:
        print(f"no {verb} method yet ({catalog.VERBS[str(verb)]})")


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="A method, as `tokenmill ls` names it, or mine.py:NAME.", autocompletion=_methods)
    ],
    out: Annotated[Path, typer.Option(help="Folder that `tokenmill reproduce` wrote into.")] = REPRODUCTIONS,
) -> None:
    """Show one method: what it does, its formula, its knobs, where it stands, and how its claim fared."""
    from tokenmill.method import KNOBS, SPENDING

    file = method_files.split(name)
    entry = method_files.entry(*file) if file else catalog.find(name)
    print(f"{entry.name}  ({entry.verb}: {catalog.VERBS[entry.verb]})")
    if entry.title:
        print(", ".join(filter(None, [f'"{entry.title}"', entry.paper, str(entry.year or "")])))
    print(f"\n{entry.doc.strip()}\n\nKnobs")
    knobs = entry.knobs | ({k: repr(v) for k, v in SPENDING.items()} if entry.verb == "score" else {})
    for knob, default in knobs.items():
        meaning = KNOBS[knob][3] if knob in KNOBS else ""
        print(f"  {knob} = {default}" + (f"    {meaning}" if meaning else ""))
    if not knobs:
        print("  none")
    print(f"\nSource\n  {entry.path}:{entry.line}")
    if not file:
        print(f"\nReproduction\n  {_reproduction(name, out)}")


def _reproduction(name: str, out: Path) -> str:
    """The newest record about this method: of the user's own runs, or of those kept with the sources."""
    from tokenmill.view.claim import lines

    kept = Path(__file__).parents[2] / "docs" / "reproductions"
    files = [f for folder in (out, kept) if (f := folder / f"{name}.json").is_file()]
    if not files:
        return f"none yet; run: tokenmill reproduce {name}"
    newest = max(files, key=lambda f: f.stat().st_mtime)
    width = shutil.get_terminal_size((100, 24)).columns - 2
    try:
        found = lines(json.loads(newest.read_text(encoding="utf-8")), max(40, width))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{newest} cannot be read; run again: tokenmill reproduce {name}"
    return "\n".join(f"  {line}".rstrip() for line in [*found, str(newest)]).lstrip()


@app.command()
@_computes
def run(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from stdin.")] = None,
    recipe: Annotated[
        str, typer.Option(help="Such as 'snapkv(budget=0.25) + token_recycling', or 'mine.py:peak(budget=0.25)'.")
    ] = "full",
    recipe_file: Annotated[
        Path | None, typer.Option(help="The recipe.toml of a compare run: its recipe, model and weights.")
    ] = None,
    model: Model = "smollm2",
    weights: Weights = "float32",
    device: Device = "cpu",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many.")] = 128,
    input: Before = None,
    chat: Chat = False,
    template: Template = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the likeliest token, as does leaving it out unless the recipe draws.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Generate text under a recipe: the text on stdout as it comes, what it cost on stderr."""
    text = _prompt(prompt, input)
    import tokenmill as tm
    from tokenmill.run.choose import Chooser

    chosen: Recipe
    if recipe_file is not None:
        chosen = recorded_recipe = tm.load_recipe(recipe_file)
        given = {"recipe": recipe, "model": model, "weights": weights}
        recorded = {"recipe": repr(chosen), **recorded_recipe.settings}
        settled = {name: _settled(ctx, name, given[name], recorded.get(name), recipe_file) for name in given}
        model, weights = settled["model"], settled["weights"]
    else:
        chosen = tm.recipe(method_files.with_files(recipe))
    draws = not Chooser.of(chosen, temperature, 1.0, seed, 1).greedy
    _refuse(ctx, "nothing is drawn; give a --temperature, or a recipe that draws", "seed", unless=draws)
    log.debug("recipe %s on %s, weights %s", chosen, model, weights)
    loaded, tokenizer = tm.load(model, weights=weights, device=device)

    def emit(row: int, piece: str) -> None:
        print(piece, end="", flush=True)

    out = tm.generate(
        loaded,
        tokenizer,
        [text],
        recipe=chosen,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        chat=template or chat,
        on_text=emit,
    )
    print(flush=True)
    _report(out[0])


def _settled(ctx: typer.Context, name: str, given: str, recorded: str | None, file: Path) -> str:
    """What a recipe file records, unless it records nothing; an option that says otherwise is refused."""
    if recorded is None or given == recorded:
        return given
    source = ctx.get_parameter_source(name)
    if source is not None and source.name == "COMMANDLINE":
        raise InputError(
            f"--{name} {given} contradicts {file}, which was chosen for {recorded}; leave out --{name}, or give the "
            "recipe with --recipe"
            if name != "recipe"
            else f"--recipe {given} contradicts --recipe-file {file}; give one of them"
        )
    return recorded


@app.command()
@_computes
def explain(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from stdin.")] = None,
    method: Annotated[
        str, typer.Option(help="An explain method; see `tokenmill ls explain`.", autocompletion=_explainers)
    ] = "occlusion",
    target: Annotated[
        str | None, typer.Option(help="The text to explain, as what comes next; the likeliest token if not given.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Explain so many tokens of the model's answer, not the next one alone.")
    ] = 1,
    top: Annotated[int, typer.Option(min=0, help="Rows of the list of tokens; 0 lists all.")] = 10,
    html: Annotated[Path | None, typer.Option(help="An HTML file to write it to, in colours.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All scores, for scripts.")] = False,
    model: Model = "smollm2",
    weights: Weights = "float32",
    device: Device = "cpu",
    input: Before = None,
    chat: Chat = False,
    template: Template = None,
    seed: Seed = 0,
) -> None:
    """Which tokens of the prompt made the next one, or a whole answer, likely."""
    text = _prompt(prompt, input)
    import tokenmill as tm
    from tokenmill.run.explain import draws, explainer

    chosen = explainer(method_files.with_files(method))  # a typo is told before a model is loaded
    _refuse(ctx, f"{chosen!r} takes none", "seed", unless=draws(chosen) and "seed" not in chosen.given)
    _refuse(ctx, "--json lists all tokens", "top", unless=not as_json)
    if html is not None:
        _writable(html, "--html")
    loaded, tokenizer = tm.load(model, weights=weights, device=device)
    found = tm.explain(
        loaded,
        tokenizer,
        text,
        method=chosen,
        target=target,
        tokens=tokens,
        chat=template or chat,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    if html is not None:
        _write(html, found.to_html(), "--html")
    if as_json:
        print(json.dumps({"model": model, "seed": seed, **found.to_dict()}, indent=1, ensure_ascii=False))
        return
    console = _console()
    console.print(found)
    count = top or len(found.tokens)
    console.print(f"\nThe model was asked {found.attribution.calls} times. What counted most, by position:")
    for position, token, score in found.top(count):
        console.print(f"{score:10.4f}  {position:5}  {token!r}", markup=False, highlight=False)
    if count < len(found.tokens):
        console.print(f"and {len(found.tokens) - count} more; --top 0 lists all")
    if found.draws:
        console.print(
            f"{found.method} draws at random: with another --seed the order may be another one.",
            markup=False, highlight=False,
        )  # fmt: skip


@app.command()
@_computes
def probe(
    name: Annotated[str, typer.Argument(help="A probe; see `tokenmill ls probe`.")],
    model: Model = "smollm2",
    device: Device = "cpu",
    model2: Annotated[str | None, typer.Option(help="A second model with the same vocabulary, for fs_gen.")] = None,
    input: Input = None,
    texts: Annotated[int, typer.Option(min=1, help="How many texts.")] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each text.")] = 256,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write what was found to.")] = None,
    seed: Seed = 0,
) -> None:
    """Measure what a model is like: a table here, and JSON with --out."""
    from tokenmill.method import Method, parse

    chosen = parse(method_files.with_files(name))
    if not isinstance(chosen, Method) or chosen.verb != "probe":
        raise SpecError(f"{chosen!r} is no probe; {did_you_mean(name, catalog.methods('probe'))}")
    if tokens * texts > PROBED:
        raise InputError(
            f"{texts} texts of {tokens} tokens are more than the {PROBED:,} that a probe reads; ask for fewer"
        )
    import tokenmill as tm
    from tokenmill.bench.tasks import Reader, sentences
    from tokenmill.ops.text import MOST_CHARACTERS, cut
    from tokenmill.run.inputs import records
    from tokenmill.run.probe import probe as ask

    given = None if input is None else records(input)
    loaded, tokenizer = tm.load(model, device=device)
    second = None if model2 is None else tm.load(model2, device=device)[0]
    reader = Reader(tokenizer)
    if given is None:
        lines = [reader.stretch(sentences(f"probe {seed} {i}"), tokens) for i in range(texts)]
        rows = [[token for line in text for token in line] for text in lines]
    else:
        parts = (part for record in given for part in cut(record.whole(tokenizer), MOST_CHARACTERS))
        ids = list(itertools.islice((i for part in parts for i in reader.ids(part)), texts * tokens))
        rows = [part for at in range(0, len(ids), tokens) if len(part := ids[at : at + tokens]) > 1][:texts]
    found = ask(loaded, tokenizer, rows, chosen, second=second, progress=sys.stderr.isatty())
    _console().print(found)
    if out is not None:
        _write(out, json.dumps({"model": model, "seed": seed, **found.as_dict()}, indent=1), "--out")


@app.command()
@_computes
def compare(
    track: Annotated[str, typer.Argument(help="What to compare: " + ", ".join(TRACKS), autocompletion=_tracks)],
    model: Model = "smollm2",
    weights: Weights = "float32",
    device: Device = "cpu",
    methods: Annotated[
        str | None,
        typer.Option(help="Specs with commas between them, such as 'mine.py:peak, snapkv'; all that fit if not given."),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Shares of the cache (depth: of the layers), such as 0.5,0.25.")
    ] = None,
    input: Input = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results; one under tokenmill-runs if not given.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what an earlier run left in the folder.")
    ] = False,
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer, shorter samples: about three minutes.")] = False,
    prompt: Annotated[
        str | None, typer.Option(help="Text on which the report of cache draws what each method kept.")
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Every column of the table, also beyond the terminal.")] = False,
) -> None:
    """Measure methods side by side: a table here, results.json, report.html and recipe.toml in the folder."""
    if track not in TRACKS:
        raise InputError(f"no track '{track}' to compare; {did_you_mean(track, TRACKS)}")
    specs = None if methods is None else split_specs(methods)
    shares = None if budgets is None else split_budgets(budgets)
    from tokenmill.bench.compare import compare as measure
    from tokenmill.method import parse

    for spec in specs or ():
        parse(method_files.with_files(spec))  # a typo is told before a model is loaded
    measure(
        track,
        model=model,
        weights=weights,
        device=device,
        methods=specs,
        budgets=shares,
        input=input,
        out=out,
        resume=resume,
        seed=seed,
        quick=quick,
        prompt=prompt,
        wide=wide,
        console=_console(),
    )


@app.command()
@_computes
def reproduce(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|VERB|all]...", help="Methods, verbs' methods, or all.", autocompletion=_methods),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for one JSON a method.")] = REPRODUCTIONS,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples, wider intervals.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what an earlier run left in the folder.")
    ] = False,
    model: Model = "smollm2",
    weights: Weights = "float32",
    device: Device = "cpu",
) -> None:
    """Run a published claim again: supported, contradicted, inconclusive or not testable here, with the numbers."""
    from tokenmill.claims import reproduce as rerun

    asked = [m for name in names or ["all"] for m in (catalog.methods(name) if name in catalog.VERBS else [name])]
    alone = all(m in catalog.entries() and catalog.find(m).card.get("trains") == "model" for m in asked)
    _refuse(ctx, "models are trained here from nothing", "model", "weights", "device", unless=not alone)
    rerun(
        names or "all",
        out=out,
        model=model,
        weights=weights,
        device=device,
        seeds=seeds,
        quick=quick,
        resume=resume,
        console=_console(),
    )


@app.command()
@_computes
def train(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A method with a learned part, or its spec.", autocompletion=_methods)
    ],
    model: Model = "smollm2",
    text: Annotated[
        Path | None, typer.Option(help="A text file or folder of your own; the standard library's text if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for weights and log; your cache if not given.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps; the method's own number if not given.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="As many steps as fit into this, instead.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of a batch; the method's own number if not given.")
    ] = None,
    own: Annotated[int, typer.Option(min=0, help="Train on this many tokens that the model itself writes.")] = 0,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    device: Device = "cpu",
) -> None:
    """Train the learned part of a method, on any text: weights, a figure on held-out text, and a log."""
    from tokenmill.method import Method, parse
    from tokenmill.models.trained import source, writable
    from tokenmill.run.fit import fit

    chosen = parse(method_files.with_files(name))
    if not isinstance(chosen, Method):
        raise SpecError(f"'{name}' is a recipe; train one method at a time")
    source(chosen)  # one without a learned part is told before a model is loaded
    alone = chosen.card.trains != "part"
    _refuse(ctx, f"{chosen.name} is a small model of its own, trained from nothing", "model", unless=not alone)
    writable(out)
    loaded = tokenizer = None
    if chosen.card.trains == "part":
        from tokenmill.models.load import load

        loaded, tokenizer = load(model, device=device)
    console = _console()
    made = fit(
        chosen, loaded, tokenizer, name=model if loaded is not None else "", text=text, out=out, steps=steps,
        minutes=minutes, rows=rows, own=own, seed=seed, resume=resume, device=device, console=console,
    )  # fmt: skip
    for what, value in made.held_out.items():
        console.print(f"{value:10.4f}  {what}, on held-out text", highlight=False)
    console.print(f"written to {made.path} and {made.path.with_suffix('.json').name}", highlight=False)


def split_budgets(text: str) -> list[float]:
    """'0.5,0.25' -> [0.5, 0.25]."""
    try:
        shares = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 1 for share in shares):
        raise SpecError(f"budgets must be shares in (0, 1] with commas between them, such as 0.5,0.25, not '{text}'")
    return list(dict.fromkeys(shares))


def _prompt(prompt: str | None, file: Path | None) -> str | list[dict[str, Any]]:
    """What goes before the prompt, and the prompt; a conversation, where the file has one."""
    from tokenmill.run.inputs import checked, records, standard_input

    before = records(file) if file else []
    if len(before) > 1:
        raise InputError(
            f"{file} has {len(before)} records, and this command takes one; write it to a file of its own "
            "(`tokenmill compare --input` takes many)"
        )
    text = standard_input() if prompt == "-" else checked(prompt or "", "the prompt")
    if not before and not text.strip():
        raise InputError("no prompt; give it in quotes, as - to read it from stdin, or a file with --input FILE")
    given = before[0].prompt if before else ""
    if isinstance(given, str):
        return "\n\n".join(part for part in (given, text) if part)
    return [*given, {"role": "user", "content": text}] if text.strip() else given


def _writable(file: Path, option: str) -> None:
    """Found out before an hour's work, not after it."""
    folder = expanded(file).absolute().parent
    if expanded(file).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {file}; choose another {option}")


def _write(file: Path, text: str, option: str) -> None:
    try:
        expanded(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}; choose another {option}") from None


def _report(answer: Any) -> None:
    """What one answer cost, on stderr, so that stdout is the text alone."""
    stats = answer.stats
    # The first token comes with the prompt's pass.
    speed = f", {(len(answer.ids) - 1) / stats.decode_seconds:.1f} tokens/s" if len(answer.ids) > 1 else ""
    print(
        f"{len(answer.ids)} tokens, {stats.forward_calls} forward passes, cache {stats.cache_bytes / 1e6:.2f} MB, "
        f"prompt {stats.prefill_seconds:.2f} s, generation {stats.decode_seconds:.2f} s{speed}",
        file=sys.stderr,
    )


def _console() -> Console:
    from tokenmill.view.terminal import Terminal

    # In a pipe nothing is wrapped to the width of a screen.
    return Terminal() if sys.stdout.isatty() else Terminal(width=200, soft_wrap=True)


def _complain(line: str) -> None:
    with contextlib.suppress(OSError):  # a full disk
        print(f"tokenmill: {line}", file=sys.stderr)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
