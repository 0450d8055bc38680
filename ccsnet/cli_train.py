"""The verbs that train: an argument, one call, a table. Like `cli`, this module prints."""

from pathlib import Path
from typing import TYPE_CHECKING

from ccsnet.arguments import parse, take
from ccsnet.errors import InputError, similar_path

if TYPE_CHECKING:
    from ccsnet.config import RunConfig

DEFAULT_RECIPE = "own"


def train(arguments: list[str]) -> int:
    """Train a model: ccsnet train DATASET [--recipe NAME] [--out DIR] [--resume RUN|auto] [...].

    DATASET is a built-in name, or your folder with a dataset.yaml. `--recipe` names the settings
    to start from (`ccsnet list recipes`); every option below overrides one of them. `--resume RUN`
    goes on with a run that was stopped; `--resume auto` does so if --out holds one, and else
    starts. The exit status is 75 when a scheduler's SIGTERM or SIGUSR1 stopped it: resume it.
    """
    from ccsnet.checkpoint import BEST, LAST, read_checkpoint
    from ccsnet.evaluate import stored_evaluation
    from ccsnet.metrics import percent
    from ccsnet.parallel import is_main_process, part
    from ccsnet.recipes import recipe
    from ccsnet.run_folder import kept, newest
    from ccsnet.run_report import write_run_report
    from ccsnet.terminal import TerminalReporter, make_console, metrics_table
    from ccsnet.train import Interrupted
    from ccsnet.train import train as start_training

    name, rest = take(arguments, "--recipe")
    resumed, rest = take(rest, "--resume")
    target, rest = take(rest, "--out")
    auto = resumed == "auto"
    if resumed is not None and not auto:
        if name is not None or target is not None:
            raise InputError("--resume goes on with a run as it is: leave out --recipe and --out.")
        out = Path(resumed)
    else:
        config = _settings(rest, recipe(name or DEFAULT_RECIPE))
        out = Path(target) if target is not None else _default_out(config)
    resume = kept(out, LAST) != [] if auto else resumed is not None
    if resume:
        start, _ = newest(out)
        if start is None:
            raise FileNotFoundError(
                f"No {out / LAST} to resume from.{similar_path(out) if not out.exists() else ''} "
                "Give the folder of a run that was interrupted."
            )
        config = _settings(rest, start.config)
    console = make_console()
    try:
        result = start_training(
            config, out, resume="auto" if auto else resume, reporter=TerminalReporter(console)
        )
        speaks = is_main_process()
    except Interrupted as stopped:
        if is_main_process():
            console.print(str(stopped), highlight=False, markup=False)
        return stopped.status
    finally:
        part()
    if speaks:
        best = stored_evaluation(read_checkpoint(out / BEST))
        metrics = result.metrics if best is None else best.metrics
        console.print(*metrics_table(metrics), sep="\n", highlight=False)
        report = write_run_report(out)
        console.print(
            f"Best validation mIoU {percent(result.best_miou)}. Checkpoints, logs, settings and "
            f"{report.name} are in {out}\n"
            f"Next: ccsnet predict {out} IMAGE --save overlay, or ccsnet app {out}",
            highlight=False,
            markup=False,
        )
    return 0


def _settings(
    arguments: list[str],
    default: "RunConfig",
    verb: str = "train",
    description: str | None = train.__doc__,
) -> "RunConfig":
    from ccsnet.config import RunConfig

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--dataset", *arguments]
    config: RunConfig = parse(RunConfig, verb, arguments, default=default, description=description)
    if not config.data.dataset:
        raise InputError(
            "Which data? Give a built-in name (`ccsnet list datasets`) or a folder with a "
            f"dataset.yaml: ccsnet {verb} photos"
        )
    return config


def _default_out(config: "RunConfig") -> Path:
    data = Path(config.data.dataset.partition(":")[0])
    label = data.stem if data.suffix in (".yaml", ".yml") else data.resolve().name
    return Path(f"runs/{label}-{config.model.head}")


def find_lr(arguments: list[str]) -> int:
    """Look for a learning rate: ccsnet find-lr DATASET [--recipe NAME] [--out CURVE.png] [...].

    Takes the settings of `ccsnet train`. The rate grows over --steps steps (100) until the loss
    explodes; nothing is kept but the curve.
    """
    from dataclasses import replace

    from ccsnet.find_lr import draw_range_test
    from ccsnet.find_lr import find_lr as run_test
    from ccsnet.recipes import recipe
    from ccsnet.terminal import TerminalReporter, make_console

    name, rest = take(arguments, "--recipe")
    target, rest = take(rest, "--out")
    default = recipe(name or DEFAULT_RECIPE)
    default = replace(default, train=replace(default.train, steps=100))
    config = _settings(rest, default, verb="find-lr", description=find_lr.__doc__)
    console = make_console()
    out = Path(target or "lr.png")
    if out.suffix != ".png":
        raise InputError(f"--out is {out}; the curve is a PNG: name it curve.png, say.")
    test = run_test(config, steps=config.train.steps, reporter=TerminalReporter(console))
    draw_range_test(test, out)
    console.print(
        f"The loss falls fastest at --lr {test.steepest:.1e}; do not pass {test.largest:.1e}. "
        f"The curve is in {out}",
        highlight=False,
    )
    return 0
