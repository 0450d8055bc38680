"""What this machine has that ccsnet needs or can use, and the command that mends what is missing.

No finding needs another to work: torch itself may be missing or broken.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ccsnet
from ccsnet.files import cache_folder

GIB = 2**30
MIN_PYTHON = (3, 11)
MIN_FREE = GIB  # Of a disk: a run's checkpoints with what it needs to resume.
MIN_SHARED = GIB // 2  # Through which worker processes hand over batches of images.
MIN_FILES = 1024
SHOWN = ("torch", "timm", "numpy", "opencv-python-headless")  # Others only if they are broken.
# Instructions that torch's kernels take, as Linux calls them: the last that is there counts most.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve", "bf16")


class Finding(NamedTuple):
    """One line of the result."""

    part: str
    state: Literal["good", "note", "broken"]
    """note: works without it."""
    what: str
    found: str
    mend: str = ""
    """What to do about it, a command where there is one."""


def examine() -> list[Finding]:
    """Look at everything; a look that fails is itself a finding."""
    found = []
    for part, look in LOOKS.items():
        try:
            found += [Finding(part, *one) for one in look()]
        except Exception as error:
            said = f"cannot be examined ({type(error).__name__}: {error})"
            found.append(Finding(part, "note", part.lower(), " ".join(said.split())))
    return found


Look = Iterator[tuple[Any, ...]]


def _versions() -> Look:
    python = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= MIN_PYTHON:
        yield "good", "Python", f"{python} on {platform.platform(terse=True)}"
    else:
        yield "broken", "Python", python, "install Python 3.11 or later"
    yield "good", "ccsnet", f"{ccsnet.__version__}{_commit()} in {Path(ccsnet.__file__).parent}"
    for requirement in _declared()[0]:
        package, _, least = requirement.partition(">=")
        version = _version(package)
        if version is None and package.startswith("opencv"):
            version = _other_opencv()
        if version is None:
            yield "broken", package, "not installed", f"pip install '{requirement}'"
        elif _numbers(version) < _numbers(least.partition(",")[0]):
            mend = f"pip install --upgrade '{requirement}'"
            yield "broken", package, f"{version}, older than {least}", mend
        elif package in SHOWN:
            yield "good", package, version
    for package in ("torch", "torchvision"):
        version, reason = _version(package), _why_not(package)
        if version is not None and reason:
            mend = "pip install --force-reinstall torch torchvision"
            yield "broken", package, f"{version} cannot be imported ({reason})", mend
        elif package == "torchvision":
            # timm imports it whatever the model, so that a broken one would break all.
            yield "good", package, f"{version or 'not installed'}; timm alone uses it"


def _why_not(package: str) -> str:
    """Why a package cannot be imported; empty if it can, or need not."""
    try:
        importlib.import_module("torch")
        if package == "torchvision":
            from ccsnet.backbones._torchvision import make_torchvision_importable

            make_torchvision_importable()
    except ModuleNotFoundError as error:
        return "" if error.name == "torch" else str(error)
    except Exception as error:  # Of the loader, or whatever a broken package raises.
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def _devices() -> Look:
    names, flags = _processor()
    have = [flag for flag in INSTRUCTIONS if flag in flags]
    yield (
        "good",
        "processor",
        f"{names or platform.processor() or platform.machine()}, {_num_processors()} usable"
        + (f", {' '.join(have)}" if have else ""),
    )
    total, free = _memory()
    if total:
        yield "good", "memory", f"{_gib(total)}, {_gib(free)} free"
    if _version("torch") is None or _why_not("torch"):
        return  # The versions tell.
    import torch

    if not torch.cuda.is_available():
        cards = _cards()
        if cards:
            cause = "a newer driver" if torch.version.cuda else "a torch that is built with CUDA"
            mend = f"install {cause}: https://pytorch.org/get-started/locally"
            yield "broken", "GPU", f"{cards[0]}, which this torch cannot use", mend
        else:
            yield "note", "GPU", "none that torch can use; all works on the processor"
    for i in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(i)
        about = f"{one.name}, {_gib(one.total_memory)}, compute capability {one.major}.{one.minor}"
        yield "good", f"GPU {i}", about
    yield "good", "--precision auto", _precisions(torch)


def _precisions(torch: Any) -> str:
    from ccsnet.precision import has_bf16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if has_bf16(device):
        return f"float32 or bf16, whichever a short trial finds faster ({device.type} has bf16)"
    return f"float32 ({device.type} does not multiply bf16 in hardware)"


def _room() -> Look:
    data = Path("data")
    for what, place in (
        ("disk: runs", Path("runs")),
        ("disk: data", data),
        ("disk: cache", cache_folder()),
    ):
        there = next(p for p in (place.resolve(), *place.resolve().parents) if p.exists())
        free = shutil.disk_usage(there).free
        found = f"{_gib(free)} free in {place if place.exists() else there}"
        if not os.access(there, os.W_OK):
            mend = "work in a folder of your own"
            if what == "disk: cache":
                mend = "export XDG_CACHE_HOME=/a/folder/of/yours"
            yield "broken", what, f"{there} cannot be written to", mend
        elif free < MIN_FREE:
            yield "broken", what, found, "make room, or give another folder with --out"
        else:
            yield "good", what, found
    shared = Path("/dev/shm")
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        if usage.total < MIN_SHARED:
            mend = "docker run --shm-size 8g, or train with --workers 0"
            yield "broken", "shared memory", f"{_gib(usage.total)}, too little for workers", mend
        else:
            yield "good", "shared memory", f"{_gib(usage.free)} free"
    try:
        import resource
    except ImportError:  # Windows.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_FILES:
        more = hard if hard != resource.RLIM_INFINITY else 65536
        yield "broken", "open files", f"at most {soft}", f"ulimit -n {min(more, 65536)}"
    else:
        yield "good", "open files", f"at most {'any' if soft == resource.RLIM_INFINITY else soft}"


def _extras() -> Look:
    for extra, requirements in _declared()[1].items():
        packages = [_name(requirement) for requirement in requirements]
        missing = [package for package in packages if _version(package) is None]
        if extra == "dev":
            continue
        if missing:
            yield "note", extra, f"needs {', '.join(missing)}", f"pip install 'ccsnet[{extra}]'"
        else:
            yield "good", extra, ", ".join(f"{package} {_version(package)}" for package in packages)


def _weights() -> Look:
    hub = Path(os.environ.get("HF_HUB_CACHE") or _hf_home() / "hub")
    torch_home = os.environ.get("TORCH_HOME")
    checkpoints = Path(torch_home or _cache_home() / "torch") / "hub" / "checkpoints"
    for what, place, pattern in (
        ("Hugging Face", hub, "models--*"),
        ("torch hub", checkpoints, "*.*"),
    ):
        there = sorted(place.glob(pattern)) if place.is_dir() else []
        models = f"{len(there)} model{'s' * (len(there) != 1)}"
        if there:
            yield "good", what, f"{models} in {place}"
        else:
            yield "note", what, f"nothing yet in {place}"
    packages = sorted(
        f"package:{name.replace('-', '_')}"
        for name in _installed()
        if name.endswith("-pytorch-model")
    )
    if packages:
        yield "good", "packages", " ".join(packages)
    offline = [n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(n)]
    if offline:
        mend = f"unset {offline[0]}"
        yield "note", offline[0], "is set: weights that are not here are not fetched", mend


def _data() -> Look:
    from ccsnet.datasets._spec import DatasetSpec
    from ccsnet.plugins import find_plugin, plugin_names

    absent = []
    for name in plugin_names("ccsnet.datasets"):
        spec = find_plugin("ccsnet.datasets", name, "SPEC")
        if not isinstance(spec, DatasetSpec):
            continue
        if Path(spec.default_root).is_dir():
            yield "good", name, f"in {spec.default_root}"
        else:
            absent.append(name)
    if absent:
        yield "note", "not here", ", ".join(absent), "ccsnet data prepare NAME ARCHIVES"
    runs = sorted({path.parent for path in Path("runs").glob("**/best.safetensors")})
    if runs:
        yield "good", "runs", f"{len(runs)} in the folder runs: ccsnet runs"
    else:
        yield "note", "runs", "none in the folder runs", "ccsnet train photos, or ccsnet demo"


LOOKS: dict[str, Callable[[], Look]] = {
    "Versions": _versions,
    "Devices": _devices,
    "Room": _room,
    "Extras": _extras,
    "Weights that were fetched": _weights,
    "Data and runs here": _data,
}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _other_opencv() -> str | None:
    """Its four packages hold the same module; any will do."""
    names = ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
    return next((version for version in map(_version, names) if version), None)


def _installed() -> set[str]:
    names = (one.metadata["Name"] for one in importlib.metadata.distributions())
    return {name.lower().replace("_", "-") for name in names if name}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))[:3]


def _declared() -> tuple[list[str], dict[str, list[str]]]:
    """What ccsnet needs, and what each of its extras adds.

    In a checkout its pyproject.toml tells, since what pip noted of it may be older.
    """
    try:
        text = (Path(ccsnet.__file__).parents[1] / "pyproject.toml").read_text("utf-8")
        project = tomllib.loads(text)["project"]
        if project["name"] == "ccsnet":
            return project["dependencies"], project["optional-dependencies"]
    except (OSError, KeyError, ValueError):
        pass
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("ccsnet") or []:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        (extras.setdefault(extra[1], []) if extra else needed).append(line)
    return needed, extras


def _name(requirement: str) -> str:
    """The package of a line such as "timm>=1.0.20"."""
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]


def _commit() -> str:
    """The commit of a checkout, or the one that pip installed from."""
    git = Path(ccsnet.__file__).parents[1] / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            reference = head.removeprefix("ref: ")
            packed = git / "packed-refs"
            if (git / reference).is_file():
                head = (git / reference).read_text().strip()
            else:
                lines = packed.read_text().splitlines()
                head = next(line.split()[0] for line in lines if line.endswith(f" {reference}"))
        return f", commit {head[:7]}"
    except (OSError, StopIteration):
        pass
    try:
        origin = importlib.metadata.distribution("ccsnet").read_text("direct_url.json")
        return f", commit {json.loads(origin or '{}')['vcs_info']['commit_id'][:7]}"
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError):
        return ""


def _processor() -> tuple[str, set[str]]:
    """Its name and its instruction sets, as Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "", set()
    facts = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), value.strip())
    return facts.get("model name", ""), set(facts.get("flags", facts.get("features", "")).split())


def _cards() -> list[str]:
    """The GPUs that NVIDIA's driver knows, whether or not torch does."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
        return re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", done.stdout, re.MULTILINE)
    return []


def _num_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> tuple[int, int]:
    """Bytes in all, and free; 0 where it cannot be told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {k: int(v.split()[0]) * 1024 for k, _, v in (line.partition(":") for line in lines)}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return 0, 0


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _hf_home() -> Path:
    return Path(os.environ.get("HF_HOME") or _cache_home() / "huggingface")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
