"""`ccsnet app`: a model, a page in the browser. Like `cli`, this module prints."""

from dataclasses import dataclass, field
from pathlib import Path

from ccsnet.app.settings import AppSettings
from ccsnet.arguments import before_options, parse
from ccsnet.errors import InputError
from ccsnet.predict_config import PredictConfig


@dataclass(frozen=True, kw_only=True)
class AppArguments:
    """What the page shows, and where."""

    compare: str | None = None
    """A second model of the same classes, shown beside the first."""
    images: Path | None = None
    """A folder of images for the gallery, which shows first what the model is least sure of."""
    port: int = 0
    """Of the page's address; 0: any that is free."""
    browser: bool = True
    """Open the page in the browser; its address is printed either way."""
    limits: AppSettings = field(default_factory=AppSettings)
    how: PredictConfig = field(default_factory=PredictConfig)
    cpu: bool = False
    """Use the processor even where there is a GPU."""


def app(arguments: list[str]) -> int:
    """Try a model in the browser: ccsnet app [RUN] [--compare RUN2] [--images FOLDER] [...].

    RUN is a run's folder (its best checkpoint is taken), a .safetensors file or a model on the hub;
    without it the demo's run is shown. Drop a picture on the page to see its classes, click a pixel
    to see what counted there. The page is seen on this machine only; Ctrl-C ends it.
    """
    named, arguments = before_options(arguments)
    options: AppArguments = parse(AppArguments, "app", arguments, description=app.__doc__)
    if len(named) > 1:
        raise InputError(
            f"ccsnet app shows one model, not {' and '.join(named)}. A second is named by "
            f"--compare: ccsnet app {named[0]} --compare {named[1]}"
        )
    from ccsnet.app.launch import check_installed, demo_run, images_in, listen, serve

    check_installed()
    names = [named[0] if named else str(demo_run()), *filter(None, [options.compare])]
    folder = images_in(options.images) if options.images is not None else []
    from ccsnet.app.server import create_app
    from ccsnet.predict import load

    with listen(options.port) as on:
        device = "cpu" if options.cpu else None
        page = create_app(
            [load(name, device) for name in names],
            [_short(name) for name in names],
            config=options.how,
            settings=options.limits,
            folder=folder,
        )
        serve(page, on, browser=options.browser, say=_say)
    return 0


def _short(name: str) -> str:
    """A run's name as a title: its folder's."""
    path = Path(name)
    if not path.exists():
        return name  # A model on the hub.
    path = path.resolve()
    return path.parent.name if path.stem in ("best", "last") else path.stem


def _say(address: str) -> None:
    print(f"The page is at {address}", "Ctrl-C ends it.", sep="\n", flush=True)
