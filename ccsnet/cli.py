"""The command line: a verb, its arguments, one call. Only this module and `terminal` print."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ccsnet.arguments import parse, positional
from ccsnet.cli_app import app
from ccsnet.cli_bench import bench
from ccsnet.cli_compare import compare
from ccsnet.cli_data import data
from ccsnet.cli_doctor import doctor
from ccsnet.cli_export import export
from ccsnet.cli_hub import push
from ccsnet.cli_predict import evaluate, predict
from ccsnet.cli_raster import raster
from ccsnet.cli_runs import runs
from ccsnet.cli_serve import serve
from ccsnet.cli_study import study
from ccsnet.cli_train import find_lr, train
from ccsnet.cli_video import video
from ccsnet.errors import InputError, unknown_name
from ccsnet.memory import keep_freed_memory
from ccsnet.usage import all_commands

LISTED = ("backbones", "datasets", "heads", "losses", "optimizers", "recipes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 2 a mistake in what was given, 130 Ctrl-C, 75 resume it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # Names of files need not be text.
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run a command; returns its exit status."""
    warnings.showwarning = _show_warning
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(all_commands(VERBS))
            return 0
        if arguments[0] == "--version":
            import ccsnet

            print(f"ccsnet {ccsnet.__version__}")
            return 0
        verb, *rest = arguments
        if verb not in VERBS:
            raise unknown_name("command", verb, VERBS)
        keep_freed_memory()
        return VERBS[verb](rest) or 0
    except SystemExit as stop:  # The argument parser has said what is wrong.
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt as stop:
        print("Stopped.", file=sys.stderr)
        return getattr(stop, "status", 130)  # Another one where a scheduler stopped it.
    except BrokenPipeError:  # Whoever read the output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print(
            "error: This needs the package torch, which is not installed: pip install ccsnet. "
            "Without it, `ccsnet predict --runtime` runs exported models.",
            file=sys.stderr,
        )
        return 2
    except (InputError, OSError, FloatingPointError) as error:
        if os.environ.get("CCSNET_DEBUG"):
            raise
        rank = os.environ.get("RANK", "0")  # Of several processes that train together.
        print(f"error{'' if rank == '0' else f' in process {rank}'}: {error}", file=sys.stderr)
        return 75 if isinstance(error, ConnectionError) else 2  # Another process was lost.


def completion(arguments: list[str]) -> int:
    """Let the TAB key complete commands: ccsnet completion bash|zsh|fish.

    Prints a script for the shell: commands, options, their values, and the names of recipes,
    backbones, heads, data sets and runs. It starts no Python, so that TAB stays quick. Write it
    anew after an update.
    """
    from ccsnet.completion import SHELLS, script

    shell, *more = *arguments, ""
    if shell in ("", "-h", "--help"):
        parse(None, "completion", ["--help"], description=completion.__doc__)
    if shell not in SHELLS:
        raise unknown_name("shell", shell, SHELLS)
    if any(more):
        raise InputError(f"ccsnet completion takes one shell, not {more[0]!r} too.")
    print(script(shell, VERBS), end="")
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """What to write, and what the file cannot tell."""

    out: Path
    """The .safetensors file to write; one that is there is not replaced."""
    head: Literal["ccs", "segformer"] | None = None
    """Refuse a file with another head; none: whichever it holds."""
    backbone: str | None = None
    """The model's backbone; none: mit_b0 to mit_b5, by the sizes of its tensors."""
    dataset: str | None = None
    """Whose classes it knows: a name or your folder; none: the file's, or by their number."""
    top_k: int = 20
    """ccs: how many classes a place may attend to; the file does not hold it."""


def convert(arguments: list[str]) -> int:
    """Make a model of another program's checkpoint: ccsnet convert FILE --out MODEL.safetensors.

    FILE is a whole checkpoint of CCSNet's release, or of SegFormer from its authors,
    MMSegmentation or Hugging Face. `evaluate` and `predict` take the model.
    """
    from ccsnet.convert import convert as make_model
    from ccsnet.terminal import make_console, table

    file, arguments = positional("file", arguments, "convert", ConvertArguments, convert.__doc__)
    options: ConvertArguments = parse(
        ConvertArguments, "convert", arguments, description=convert.__doc__
    )
    made = make_model(
        file,
        options.out,
        head=options.head,
        backbone=options.backbone,
        dataset=options.dataset,
        top_k=options.top_k,
    )
    console = make_console()
    rows = [[part, names, "-" if n is None else str(n)] for part, names, n in made.rows]
    columns = {"part": "left", "as named by": "left", "tensors": "right"}
    console.print(table("Converted", columns, rows))
    console.print(
        f"{len(made.info.classes)} classes of {made.info.dataset}, known from {made.classes_from}. "
        f"The model is in {made.path}",
        highlight=False,
        markup=False,
    )
    return 0


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """The demo's size."""

    out: Path = Path("runs/demo")
    """Folder for the run and its report."""
    steps: int | None = None
    """Optimizer steps; none: the recipe's."""


def demo(arguments: list[str]) -> int:
    """Train on the whole Earth, and draw its land-cover map: ccsnet demo [--steps N] [--out DIR].

    A run that is there already is finished if it was interrupted, and used if it was not.
    """
    from ccsnet.demo import run_demo
    from ccsnet.terminal import TerminalReporter, make_console
    from ccsnet.train import Interrupted

    options: DemoArguments = parse(DemoArguments, "demo", arguments, description=demo.__doc__)
    console = make_console()
    try:
        report = run_demo(options.out, steps=options.steps, reporter=TerminalReporter(console))
    except Interrupted:
        console.print("Stopped; all is saved. `ccsnet demo` goes on.", highlight=False)
        return 130
    console.print(f"Open the report: {report.resolve()}", highlight=False)
    return 0


def list_names(arguments: list[str]) -> int:
    """Show what there is: ccsnet list KIND [PART OF A NAME] [--again].

    KIND is backbones, datasets, heads, losses, optimizers or recipes.

    Figures of backbones and recipes are computed once and then kept; `--again` computes them anew.
    """
    again = "--again" in arguments
    kind, part, *more = *(a for a in arguments if a != "--again"), "", ""
    if kind in ("", "-h", "--help"):
        parse(None, "list", ["--help"], description=list_names.__doc__)
    if kind not in LISTED:
        raise unknown_name("list", kind, LISTED)
    refused = [a for a in (part, *more) if a.startswith("-")] or [a for a in more if a]
    if refused:
        raise InputError(
            f"ccsnet list {kind} takes one part of a name and --again, not {refused[0]!r}."
        )
    if kind in ("backbones", "recipes"):
        from ccsnet.catalogue import backbone_lines, recipe_lines

        make_lines = {"backbones": backbone_lines, "recipes": recipe_lines}[kind]
        for line in make_lines(part, again=again):
            print(line, flush=True)
        return 0
    from ccsnet.plugins import plugin_names, plugin_notes

    if kind == "datasets":
        from ccsnet.plugins import find_plugin

        specs = {
            n: find_plugin("ccsnet.datasets", n, "SPEC") for n in plugin_names("ccsnet.datasets")
        }
        notes = {n: f"{s.num_classes} classes. {s.licence}" for n, s in specs.items()}
    elif kind == "optimizers":
        from ccsnet.optim import optimizer_names

        notes = optimizer_names()
    else:
        notes = plugin_notes(f"ccsnet.{kind}")
    found = {name: note for name, note in notes.items() if part in name}
    if not found:
        raise unknown_name({"losses": "loss"}.get(kind, kind.removesuffix("s")), part, notes)
    width = max(map(len, found))
    print("\n".join(f"{name:{width}}  {note}".rstrip() for name, note in found.items()))
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "find-lr": find_lr,
    "runs": runs,
    "study": study,
    "evaluate": evaluate,
    "compare": compare,
    "predict": predict,
    "video": video,
    "raster": raster,
    "app": app,
    "serve": serve,
    "export": export,
    "convert": convert,
    "push": push,
    "bench": bench,
    "data": data,
    "demo": demo,
    "list": list_names,
    "doctor": doctor,
    "completion": completion,
}
