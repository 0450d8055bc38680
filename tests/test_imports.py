"""The layout of docs and code: who may import whom, and what stays out of whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ccsnet

PACKAGE = Path(ccsnet.__file__).parent

# From low to high; a module imports only what is lower, or its own level. What a folder's name
# starts stands for all of the folder.
LEVELS = (
    (
        "__init__",
        "arguments",
        "errors",
        "files",
        "lost_process",
        "machine",
        "memory",
        "options",
        "progress",
        "stopping",
        "usage",
        "verbs",
    ),
    ("plugins", "predict_config", "bench_config", "footprint"),
    ("datasets",),
    ("backbones", "heads", "losses", "draw", "upsample", "scores", "counts"),
    ("loss", "metrics", "boundary", "calibration", "data", "sliding", "grid", "formats"),
    ("segmenter", "batch_norm", "sharding", "averaging", "runtime", "runtime_maps"),
    (
        "parallel",
        "precision",
        "compiled",
        "trial",
        "cpu_kernels",
        "trackers",
        "runlog",
        "runs",
        "depth",
        "inference",
    ),
    ("optim", "optimizer_state"),
    ("config",),
    ("checkpoint", "run_folder"),
    (
        "evaluate",
        "hub",
        "publish",
        "model_card",
        "outputs",
        "pictures",
        "predict",
        "preflight",
        "assemble",
        "keeping",
    ),
    ("claims", "walk", "attention", "folders", "folders_work", "video"),
    (
        "rasters",
        "rasters_bands",
        "rasters_config",
        "rasters_memory",
        "rasters_parts",
        "rasters_passes",
        "rasters_polygons",
        "rasters_resize",
        "rasters_scene",
    ),
    ("train", "find_lr", "serve", "terminal", "bench", "report", "run_report", "figures"),
    ("compare_causes", "compare", "compare_page"),
    ("export_forms",),
    ("export", "quantise"),
    ("recipes", "catalogue"),
    (
        "completion",
        "convert",
        "demo",
        "doctor",
        "study",
        "study_cells",
        "study_cost",
        "study_file",
        "study_results",
        "study_runner",
        "study_stats",
        "study_table",
        "study_timing",
    ),
    (
        "cli",
        "cli_app",
        "cli_data",
        "cli_data_make",
        "cli_doctor",
        "cli_raster",
        "cli_export",
        "cli_bench",
        "cli_compare",
        "cli_hub",
        "cli_predict",
        "cli_runs",
        "cli_serve",
        "cli_study",
        "cli_train",
        "cli_video",
        "app",
    ),
    ("__main__",),
)
NEITHER = (  # Kinds of part that know nothing of each other.
    *(("heads", other) for other in ("backbones", "datasets", "data")),
    *(("backbones", other) for other in ("heads", "datasets", "data")),
    *(("datasets", other) for other in ("heads", "backbones", "data")),
    *(("data", other) for other in ("heads", "backbones")),
)
PRINTING = {
    "cli",
    "cli_app",
    "arguments",
    "cli_data",
    "cli_data_make",
    "cli_doctor",
    "cli_export",
    "cli_predict",
    "cli_bench",
    "cli_compare",
    "cli_runs",
    "cli_serve",
    "cli_study",
    "cli_train",
    "cli_video",
    "terminal",
    "app",
}
USES_TIMM = {"backbones", "optim"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> list[str]:
    """Dotted names that a module imports anywhere, `TYPE_CHECKING` blocks left out."""
    found = []
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        waiting += ast.iter_child_nodes(node)
    return found


def parts_of(imported: list[str]) -> set[str]:
    """First names below ccsnet."""
    return {name.split(".")[1] for name in imported if name.startswith("ccsnet.")}


def level_of(part: str) -> int:
    for level, parts in enumerate(LEVELS):
        if part in parts:
            return level
    raise AssertionError(f"ccsnet/{part} has no level in tests/test_imports.py: add it to one")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards(path):
    here = name_of(path).split(".")[0]
    allowed = {p.stem if p.suffix else p.name for p in PACKAGE.iterdir()}
    for part in parts_of(imports(path)) & allowed - {here}:
        assert level_of(part) <= level_of(here), f"{name_of(path)} imports ccsnet.{part}"
        assert (here, part) not in NEITHER, f"{name_of(path)} imports ccsnet.{part}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_stays_out(path):
    part = name_of(path).split(".")[0]
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    imported = imports(path)
    outside = {name.split(".")[0] for name in imported}
    assert "timm" not in outside or part in USES_TIMM
    assert "torchvision" not in outside or name_of(path) == "backbones._torchvision"
    assert not any(name.endswith(".*") for name in imported), "no star imports"
    if part == "datasets":
        assert "torch" not in outside
    for node in ast.walk(tree):
        called = node.func.id if isinstance(node, ast.Call) and hasattr(node.func, "id") else ""
        assert called != "print" or part in PRINTING


def test_levels_name_what_exists():
    """So that the list does not outlive the code; parts still to come may stand in it."""
    parts = {name_of(path).split(".")[0] or "__init__" for path in MODULES}
    listed = {part for level in LEVELS for part in level}
    assert parts <= listed
    assert listed - parts <= {"app", "bench", "demo", "export", "report"}


def test_no_import_goes_round():
    """Modules that need each other could be imported in one order only."""
    modules = {name_of(path) or "__init__": path for path in MODULES}
    edges = {
        name: {
            target
            for target in (n.removeprefix("ccsnet.") for n in imports(path))
            if target in modules and target != name
        }
        for name, path in modules.items()
    }
    done: set[str] = set()
    while ready := {n for n, needs in edges.items() if n not in done and needs <= done}:
        done |= ready
    assert set(edges) - done == set()


def _names_below(folder: Path) -> list[str]:
    return [path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()]


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_importing_the_package_is_quick():
    heavy = "{'torch', 'timm', 'numpy', 'cv2'}"
    assert run_python(f"import ccsnet, sys; print({heavy} & set(sys.modules))") == "set()"
    assert run_python(f"import ccsnet.cli, sys; print({heavy} & set(sys.modules))") == "set()"


def test_data_sets_need_no_torch():
    code = (
        "import sys; from ccsnet.plugins import find_plugin, plugin_names\n"
        "for n in plugin_names('ccsnet.datasets'): find_plugin('ccsnet.datasets', n, 'SPEC')\n"
        "print('torch' in sys.modules)"
    )
    assert run_python(code) == "False"


def test_public_names():
    assert set(ccsnet.__all__) == set(ccsnet._HOMES) == set(dir(ccsnet))
    for name in _names_below(PACKAGE):
        assert name not in ccsnet.__all__, f"importing ccsnet.{name} would replace the public name"
    for name in ccsnet.__all__:
        found = getattr(ccsnet, name)
        assert found.__module__ == ccsnet._HOMES[name]
        assert found.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ccsnet.nothing  # noqa: B018
