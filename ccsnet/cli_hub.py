"""`ccsnet push`: a run, a name, one call, two lines. Like `cli`, this prints."""

from dataclasses import dataclass
from pathlib import Path

from ccsnet.arguments import parse, positional, second
from ccsnet.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PushArguments:
    """Who may see it, and what is said of it."""

    private: bool = False
    """Show it to nobody but you, or your organisation."""
    revision: str | None = None
    """The branch to publish on, made if missing; none: the main one."""
    message: str | None = None
    """What is new, for the list of the repository's changes."""
    licence: str | None = None
    """Of the weights, as the hub calls it, such as apache-2.0; none: not stated."""


def push(arguments: list[str]) -> int:
    """Publish a model on the Hugging Face hub: ccsnet push RUN USER/MODEL [--private] [...].

    RUN is a run's folder (its best checkpoint) or a .safetensors file. Published are the weights,
    the settings, the figures and a page about them; then `ccsnet predict USER/MODEL photo.jpg`
    works anywhere. `hf auth login` once before.
    """
    from ccsnet import __version__
    from ccsnet.hub import PREFIX, hub_name, open_run
    from ccsnet.predict import predictor_of
    from ccsnet.terminal import make_console

    run_name, arguments = positional("run", arguments, "push", PushArguments, push.__doc__)
    question = f"Publish it as what? ccsnet push {run_name} USER/MODEL"
    wanted, arguments = second(question, arguments, "push", PushArguments, push.__doc__)
    options: PushArguments = parse(PushArguments, "push", arguments, description=push.__doc__)
    if Path(wanted).exists() and not Path(run_name).exists():
        raise InputError(f"First comes the run, then its name: ccsnet push {wanted} {run_name}")
    branch = f"@{options.revision}" if options.revision else ""
    name = hub_name(f"{PREFIX}{wanted.removeprefix(PREFIX)}{branch}")
    assert name is not None, "a name with the prefix is one of the hub, or refused"
    url = predictor_of(open_run(run_name), "cpu").push_to_hub(
        name.repository,
        licence=options.licence,
        private=options.private or None,
        branch=name.revision,
        commit_message=options.message or f"Publish with ccsnet {__version__}",
    )
    console = make_console()
    stated = "" if options.licence else " Its page states no licence: --licence adds one."
    console.print(f"Published: {url}{stated}", highlight=False, markup=False)
    console.print(f"ccsnet predict {name} photo.jpg", highlight=False, markup=False)
    return 0
