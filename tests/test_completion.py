"""Shells complete commands by our scripts: asked of the shells themselves."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from ccsnet import cli
from ccsnet.completion import SHELLS, commands, names
from ccsnet.usage import PURPOSES
from ccsnet.verbs import ABOUT

SECONDS = 0.2  # What a TAB may take.
ASK = {
    "bash": """
source "$0"
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
_ccsnet_complete
printf '%s\\n' "${COMPREPLY[@]}"
""",
    "fish": "source $argv[1]; complete -C (string join -- ' ' $argv[2..-1]) | cut -f1",
}
START = {
    "bash": (
        ("bash", "--norc", "--noprofile", "-i"),
        'source {script}; ccsnet() {{ echo "GOT <<$*>>"; }}; echo READ$((1))Y\n',
    ),
    "zsh": (
        ("zsh", "-f", "-i"),
        "autoload -U compinit; compinit -u -D; source {script}; "
        'ccsnet() {{ print -r -- "GOT <<$*>>" }}; print READ$((1))Y\n',
    ),
}


def needs(shell):
    """The shell's path, or the test is skipped."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    found, known = commands(cli.VERBS), names()
    for shell, write in SHELLS.items():
        (folder / f"ccsnet.{shell}").write_text(write(found, known))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with runs, a data set and an image."""
    for file in (
        "runs/photos-ccs/best.safetensors",
        "runs/study/ccs-0/last.safetensors",
        "photos/dataset.yaml",
        "my street.png",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=sorted(ASK))
def ask(request, scripts, place):
    """Asks a shell what may come at the end of a line."""
    shell = needs(request.param)

    def asked(line):
        words = line.split(" ")
        if request.param == "fish":
            command = [shell, "--no-config", "-c", ASK["fish"], scripts / "ccsnet.fish", *words]
        else:
            command = [shell, "-c", ASK["bash"], scripts / "ccsnet.bash", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return {found for found in done.stdout.splitlines() if found}

    return asked


def test_commands(ask):
    top = set(cli.VERBS)
    assert top <= ask("ccsnet ") <= top | {"--help", "--version"}
    assert ask("ccsnet tra") == {"train"}
    assert ask("ccsnet data ") == {"prepare", "init", "check", "browse", "import", "shard"}
    assert ask("ccsnet data pre") == {"prepare"}
    assert ask("ccsnet --v") == {"--version"}


def test_options(ask):
    assert ask("ccsnet train --rec") == {"--recipe"}
    assert ask("ccsnet train photos --head ccs --coarse-w") == {"--coarse-weight"}
    assert ask("ccsnet train --no-f") == {"--no-flip"}
    assert ask("ccsnet data check photos --sp") == {"--split"}
    assert ask("ccsnet predict runs/x a.png --fli") == {"--flip"}
    assert ask("ccsnet doctor --j") == {"--json"}


def test_values(ask):
    assert ask("ccsnet export runs/x --to torch") == {"torchscript", "torch-export"}
    assert ask("ccsnet predict r p --save index over") == {"overlay"}
    assert ask("ccsnet evaluate r --precision ") == {"auto", "float32", "bf16"}
    assert ask("ccsnet train photos --steps ") == set()
    assert ask("ccsnet list ") == {
        *("backbones", "datasets", "heads", "losses", "optimizers", "recipes"),
    }
    assert ask("ccsnet completion ") == {"bash", "zsh", "fish"}


def test_names(ask):
    assert ask("ccsnet train --recipe camvid") == {"camvid_lite0"}
    assert ask("ccsnet train photos --head seg") == {"segformer", "segformer_mmseg"}
    assert ask("ccsnet train photos --backbone mit_b") == {f"mit_b{i}" for i in range(6)}
    assert ask("ccsnet train photos --optimizer sgdp") == {"sgdp"}
    assert ask("ccsnet data prepare love") == {"loveda"}
    assert ask("ccsnet bench resnet18 mit_b5") == {"mit_b5"}


def test_what_is_on_the_disk(ask):
    for line in ("ccsnet evaluate runs/", "ccsnet compare runs/a runs/"):
        assert {"runs/photos-ccs", "runs/study/ccs-0"} <= ask(line)
    assert {"auto", "runs/photos-ccs"} <= ask("ccsnet train --resume ")
    assert {found.rstrip("/") for found in ask("ccsnet train ph")} == {"photos"}
    for line in ("ccsnet predict r my", "ccsnet predict r a.png my", "ccsnet doctor --json my"):
        assert ask(line) == {"my street.png"}


def test_an_equals_sign_stands_alone_in_bash(scripts, place):
    words = ["ccsnet", "train", "photos", "--head", "=", "smp.UP"]
    command = [needs("bash"), "-c", ASK["bash"], scripts / "ccsnet.bash", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["smp.UPerNet"]


@pytest.mark.parametrize("shell", sorted(START))
def test_tab_in_a_terminal(shell, scripts, place):
    """Keys go to a shell in a terminal; `ccsnet` is there a function that shows its arguments."""
    needs(shell)
    command, setup = START[shell]
    typed = {
        "ccsnet tra\tph\t": "train photos",
        "ccsnet train --rec\tcamvid\t": "train --recipe camvid_lite0",
        "ccsnet data pre\tloved\t": "data prepare loveda",
        "ccsnet predict r my\t": "predict r my street.png",
        "ccsnet export r --to torchs\t--lab\t": "export r --to torchscript --label-map",
        "ccsnet evaluate r --own-\tTr\t": "evaluate r --own-size True",
    }
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="dumb", HOME=str(place))
        os.execvp(command[0], command)
    try:
        os.write(terminal, setup.format(script=scripts / f"ccsnet.{shell}").encode())
        _read(terminal, r"READ1Y")
        for keys, expected in typed.items():
            os.write(terminal, f"{keys}\n".encode())
            shown = re.search(r"GOT <<(.*?)>>", _read(terminal, r"GOT <<[^\r\n]*?>>"))
            assert shown is not None
            assert shown[1].rstrip("/ ") == expected  # zsh takes the slash away again.
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def _read(terminal, until, seconds=20.0):
    """What the terminal shows until a pattern has come."""
    shown, end = "", time.monotonic() + seconds
    while not re.search(until, shown):
        assert time.monotonic() < end, f"{until} did not come: {shown[-300:]}"
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


def test_a_tab_is_quick(scripts, place):
    """No Python starts: the best of three is asked, since other work may slow one."""
    took = []
    for _ in range(3):
        start = time.perf_counter()
        words = ["ccsnet", "train", "photos", "--backbone", "convnext"]
        command = [needs("bash"), "-c", ASK["bash"], scripts / "ccsnet.bash", *words]
        subprocess.run(command, capture_output=True, check=True)
        took.append(time.perf_counter() - start)
    assert min(took) < SECONDS
    for shell in SHELLS:
        assert "python" not in (scripts / f"ccsnet.{shell}").read_text().lower()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_are_well_formed(shell, scripts):
    done = subprocess.run(
        [needs(shell), "-n", scripts / f"ccsnet.{shell}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_is_completed():
    found = commands(cli.VERBS)
    known = names()
    assert {name for name in found if " " not in name} == set(cli.VERBS)
    for name, command in found.items():
        assert command.text
        assert command.options or name in ("data", "completion")
        for word in command.words:
            kind = word.removesuffix("...")
            assert kind in {"@", "run", "dataset", "path", "text", *known} or "|" in kind
    assert {verb for group in PURPOSES.values() for verb in group} >= set(cli.VERBS)
    assert set(found) >= set(ABOUT) & set(found)


def test_what_is_refused(call):
    assert call("completion", "bsh")[0::2] == (
        2,
        "error: No shell is called 'bsh'. Perhaps you meant bash or zsh or fish?\n",
    )
    assert call("completion", "bash", "zsh")[0] == 2
    status, printed, _ = call("completion")
    assert status == 0
    assert "source <(ccsnet completion bash)" in printed


def test_the_command_prints_the_script(call, scripts):
    assert call("completion", "zsh") == (0, (scripts / "ccsnet.zsh").read_text(), "")
    assert Path(scripts / "ccsnet.zsh").read_text().startswith("#compdef ccsnet\n")
