"""What a stranger reads: help fits the terminal, its examples work, mistakes get a suggestion."""

import dataclasses
import re
import shlex
from types import SimpleNamespace

import pytest
import tyro

from ccsnet import arguments, catalogue, cli, cli_data, options, recipes, run_folder, usage
from ccsnet.options import Option, options_of
from ccsnet.plugins import plugin_names
from ccsnet.verbs import ABOUT, NAMES

COMMANDS = {
    **{verb: function for verb, function in cli.VERBS.items() if verb != "data"},
    **{f"data {verb}": function for verb, function in cli_data.VERBS.items()},
}
EXAMPLES = [
    (verb, line)
    for verb in ("data", *COMMANDS)
    if verb in ABOUT
    for line, _ in ABOUT[verb].examples
]
WORDS = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


class ParsedError(BaseException):
    """An example has got through the parser."""


@pytest.fixture
def parses(monkeypatch, tmp_path, capsys):
    """Runs a command until its options are parsed; tells whether they were."""
    monkeypatch.chdir(tmp_path)  # `doctor --json` writes.
    real = tyro.cli

    def parse(*given, **options):
        real(*given, **options)
        raise ParsedError

    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    # A run that --resume finds, and tables that take long.
    own = recipes.recipe("own")
    found = dataclasses.replace(own, data=dataclasses.replace(own.data, dataset="photos"))
    monkeypatch.setattr(run_folder, "newest", lambda out: (SimpleNamespace(config=found), []))
    for name in ("backbone_lines", "recipe_lines"):
        monkeypatch.setattr(catalogue, name, lambda part, again: [])

    def run(*words):
        try:
            status = cli.run(list(words))
        except ParsedError:
            return
        assert status == 0, capsys.readouterr().err

    return run


@pytest.fixture
def terminal(monkeypatch):
    """Sets the terminal's width."""
    return lambda columns: monkeypatch.setenv("COLUMNS", str(columns))


def test_every_command_has_examples():
    assert set(ABOUT) == {*COMMANDS, "data"}
    for verb, about in ABOUT.items():
        assert len(about.examples) in (2, 3), verb
        for line, meaning in about.examples:
            assert f"ccsnet {verb} " in f"{line} ".replace(")", " ") or verb == "data"
            assert meaning
            assert not meaning.endswith(".")


@pytest.mark.parametrize(("verb", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_examples_are_understood(parses, verb, line):
    words = shlex.split(line.removeprefix("source <(").removesuffix(")").partition(" > ")[0])
    assert words[0] == "ccsnet"
    parses(*words[1:])


def test_names_in_examples_exist():
    for _, line in EXAMPLES:
        if found := re.search(r"--recipe (\S+)", line):
            assert found[1] in recipes.RECIPES
        if found := re.search(r"data prepare (\S+)|--dataset (\S+)", line):
            assert (found[1] or found[2]) in plugin_names("ccsnet.datasets")


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_fits(verb, terminal, capsys):
    terminal(80)
    assert cli.run([*verb.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: ccsnet ")
    assert f"ccsnet {verb}" in shown.splitlines()[0]
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert "None)" not in shown
    terminal(30)  # As narrow as a phone.
    assert cli.run([*verb.split(), "--help"]) == 0


@pytest.mark.parametrize("verb", COMMANDS)
def test_options_are_those_of_the_parser(verb, capsys, terminal):
    asked = arguments.kind_of(COMMANDS[verb])
    if asked is None:
        assert verb in ("list", "completion")
        return
    ours = options_of(asked.kind, asked.default)
    terminal(200)
    config = (tyro.conf.OmitArgPrefixes,)
    default = {} if asked.default is None else {"default": asked.default}
    with pytest.raises(SystemExit):
        tyro.cli(asked.kind, args=["--help"], config=config, **default)
    theirs = set(re.findall(r"^[^\w-]{1,3}(--[a-z][\w-]*)", capsys.readouterr().out, re.MULTILINE))
    assert {option.name for option in ours} == theirs
    for option in ours:
        assert option.text, option.name
    told = usage.help_text(verb, asked.kind, asked.default, COMMANDS[verb].__doc__)
    listed = re.findall(r"^  (--[\w-]+)", told, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) >= theirs


def test_values_and_defaults():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Inner:
        """What is inside. More of it."""

        zero: int = 0
        sizes: tuple[int, ...] = (1, 2)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Outer:
        """All."""

        must: str
        inner: Inner = dataclasses.field(default_factory=Inner)
        maybe: tuple[int, int] | None = None
        flag: bool = False
        both: bool = True
        third: bool | None = None

    outer = {option.name: option for option in options_of(Outer, None)}
    assert [*outer] == ["--must", "--maybe", "--flag", "--both", "--third", "--zero", "--sizes"]
    assert outer["--must"].required
    assert outer["--maybe"].value == "N N"
    assert (outer["--flag"].value, outer["--flag"].off) == ("", "--no-flag")
    assert outer["--third"].values == ("True", "False")
    assert (outer["--sizes"].value, outer["--sizes"].many) == ("N ...", True)
    assert outer["--zero"].group == "What is inside. More of it."
    told = usage.help_text("x", Outer, None, "Do it: ccsnet x [...].\n\nMore.")
    assert told.startswith("usage: ccsnet x [...]\n\nDo it.\n\nMore.\n")
    assert "  --zero N              [0]\n" in told
    assert "  --sizes N ...         [1 2]\n" in told
    assert "  --both, --no-both     [on]\n" in told
    assert "  --must TEXT           [required]\n" in told
    assert "  --flag\n" in told
    assert "What is inside. More of it:\n" in told


def test_the_recipe_gives_the_defaults(capsys):
    cli.run(["find-lr", "--help"])
    assert re.search(r"--steps N\s+Optimizer steps. \[100\]", capsys.readouterr().out)


def test_exported_models_have_options_of_their_own(capsys):
    assert cli.run(["predict", "--runtime", "onnxruntime", "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: ccsnet predict --runtime onnxruntime MODEL.onnx")
    assert len(re.findall(r"^  --runtime", told, re.MULTILINE)) == 1
    assert "--threads" in told


def test_where_the_source_is_not_there(monkeypatch):
    monkeypatch.setattr(options, "_bodies", lambda file: {})
    kind = arguments.kind_of(cli.VERBS["bench"]).kind
    assert {option.text for option in options_of(kind)} == {""}


def test_all_commands_at_a_glance(terminal, capsys):
    terminal(80)
    assert cli.run([]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert re.findall(r"^  (\S+) ", shown, re.MULTILINE) == [
        verb for group in usage.PURPOSES.values() for verb in group if verb in cli.VERBS
    ]
    assert usage.OTHERS not in shown
    assert usage.OTHERS in usage.all_commands({"new": test_all_commands_at_a_glance})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("trian photos", "No command is called 'trian'. Perhaps you meant train"),
        ("qqq", "No command is called 'qqq'. Known: app, bench, "),
        ("data chek photos", "Perhaps you meant check"),
        ("list recipe", "Perhaps you meant recipes"),
        ("predict runs/x a.png --sav index", "--save"),
        ("train photos --stps 5", "--steps"),
        ("export runs/x --to onx", "onnx"),
        ("doctor --jsn x", "--json"),
        ("train fotos", "dataset.yaml, and there is no folder 'fotos' here."),
        ("completion tcsh", "Perhaps you meant"),
        ("train photos --crop 128 --steps 5", "--crop takes 2 values, N N, and got 128. Height"),
        ("train photos --crop=128 --steps 5", "--crop takes 2 values, N N, and got 128. Height"),
        ("train photos --scale", "--scale takes 2 values, NUMBER NUMBER, and got none."),
    ],
)
def test_mistakes_get_a_suggestion(call, line, told):
    status, _, err = call(*line.split())
    assert status == 2
    assert told in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_options_with_names_take_any_text():
    """Whose values completion knows; help calls them NAME."""
    for verb in ("train", "evaluate"):
        asked = arguments.kind_of(COMMANDS[verb])
        for option in options_of(asked.kind, asked.default):
            if option.name in NAMES and option.value:
                assert option.value.startswith("TEXT")
    assert Option("--x").off == "--no-x"
