"""What help and completion say of each command: what stands first, examples, further options."""

from typing import NamedTuple

from ccsnet.options import Option

NAMES = {
    "--head": "heads",
    "--backbone": "backbones",
    "--dataset": "datasets",
    "--recipe": "recipes",
    "--optimizer": "optimizers",
    "--loss": "losses",
    "--coarse-loss": "losses",
    "--also": "run",
    "--compare": "run",
    "--resume": "run",
}
"""Of which kind the values of an option are, wherever it takes any."""

PURPOSES = {
    "Get data ready": ("data",),
    "Train": ("train", "find-lr", "study", "demo"),
    "Measure": ("evaluate", "compare", "runs", "bench"),
    "Use": ("predict", "video", "raster", "app", "serve"),
    "Hand on": ("export", "convert", "push"),
    "Find out": ("list", "doctor", "completion"),
}
"""The commands in the order in which `ccsnet` shows them."""


class About(NamedTuple):
    """What is said of a command."""

    words: tuple[str, ...]
    """The kinds of what stands before the options; one that ends in ... may be repeated. Those
    that completion knows: run, dataset, path, and the kinds of `ccsnet list`."""
    examples: tuple[tuple[str, str], ...]
    """Commands, and what they do; each can be copied as it stands."""
    more: tuple[Option, ...] = ()
    """Options that no dataclass holds."""


RECIPE = Option("--recipe", "NAME", default="own", text="The settings to start from.")

ABOUT: dict[str, About] = {
    "train": About(
        ("dataset",),
        (
            ("ccsnet train photos", "your folder, which has a dataset.yaml"),
            (
                "ccsnet train photos --recipe camvid_lite0 --steps 3000 --out runs/long",
                "a recipe, some of its settings changed",
            ),
            ("ccsnet train --resume runs/long", "go on with a run that was stopped"),
        ),
        (
            RECIPE,
            Option("--out", "PATH", text="Folder of the run; none: runs/DATASET-HEAD."),
            Option("--resume", "RUN|auto", ("auto",), text="Go on with a run that was stopped."),
        ),
    ),
    "find-lr": About(
        ("dataset",),
        (
            ("ccsnet find-lr photos", "the curve is lr.png"),
            (
                "ccsnet find-lr photos --optimizer sgd --steps 200 --out sgd.png",
                "of another optimizer, more finely",
            ),
        ),
        (RECIPE, Option("--out", "PATH", default="lr.png", text="The curve, a PNG.")),
    ),
    "runs": About(
        ("path",),
        (
            ("ccsnet runs", "all runs in the folder runs, best first"),
            ("ccsnet runs archive --sort hours --json archive.json", "those of another folder"),
        ),
    ),
    "study": About(
        ("path",),
        (
            ("ccsnet study heads.yaml --dry-run", "check the file; show what would be run"),
            ("ccsnet study heads.yaml --jobs 2", "run it, or go on with it, two runs at a time"),
            ("ccsnet study heads.yaml --table-only", "the tables of what is finished so far"),
        ),
    ),
    "evaluate": About(
        ("run",),
        (
            ("ccsnet evaluate runs/photos-ccs", "on the split that it validated on"),
            (
                "ccsnet evaluate runs/photos-ccs --split test --flip --out figures",
                "each image also mirrored; a page with all figures",
            ),
            (
                "ccsnet evaluate runs/city --dataset dark_zurich",
                "on other data with the same classes",
            ),
        ),
    ),
    "compare": About(
        ("run", "run"),
        (
            (
                "ccsnet compare runs/photos-ccs runs/photos-fcn",
                "classes, causes and images that the first loses on",
            ),
            (
                "ccsnet compare runs/photos-ccs runs/photos-fcn --out why.html",
                "also a page with the images",
            ),
        ),
    ),
    "predict": About(
        ("run", "path..."),
        (
            ("ccsnet predict runs/photos-ccs street.jpg --save overlay", "one image"),
            (
                "ccsnet predict runs/photos-ccs archive --save index area --resume",
                "a folder; given again, goes on where it stopped",
            ),
            (
                "ccsnet predict --runtime onnxruntime model.onnx street.jpg",
                "an exported model, without torch",
            ),
        ),
        (
            Option(
                "--runtime",
                "onnxruntime|openvino",
                ("onnxruntime", "openvino"),
                text="RUN is a file of `ccsnet export`, which this computes; its options differ.",
            ),
        ),
    ),
    "video": About(
        ("run", "path"),
        (
            ("ccsnet video runs/photos-ccs drive.mp4 --out labelled.mp4", "a file"),
            ("ccsnet video runs/photos-ccs 0 --out live.mp4 --smooth 0.7", "the first camera"),
        ),
    ),
    "raster": About(
        ("run", "path"),
        (
            ("ccsnet raster runs/land scene.tif", "writes scene-labels.tif"),
            (
                "ccsnet raster runs/land scene.tif --polygons land.gpkg",
                "also as polygons",
            ),
        ),
    ),
    "app": About(
        ("run",),
        (
            ("ccsnet app", "the demo's run"),
            (
                "ccsnet app runs/photos-ccs --compare runs/photos-fcn --images archive",
                "two models beside each other, and a folder of images",
            ),
        ),
    ),
    "serve": About(
        ("run",),
        (
            ("ccsnet serve runs/photos-ccs", "on this machine alone"),
            (
                "ccsnet serve runs/photos-ccs --port 9000 --queue 64 --timeout 20",
                "more at once, for less long",
            ),
        ),
    ),
    "export": About(
        ("run",),
        (
            ("ccsnet export runs/photos-ccs", "ONNX, beside the checkpoint"),
            (
                "ccsnet export runs/photos-ccs --to torchscript --out street.pt",
                "for other programs with torch",
            ),
            (
                "ccsnet export runs/photos-ccs --label-map --size 512 1024",
                "label maps instead of logits, of one size of images",
            ),
        ),
    ),
    "convert": About(
        ("path",),
        (
            (
                "ccsnet convert segformer.b1.pth --out b1.safetensors --dataset ade20k",
                "a published SegFormer",
            ),
            (
                "ccsnet convert iter_160000.pth --head ccs --out ccs.safetensors",
                "a checkpoint of the authors' release",
            ),
        ),
    ),
    "push": About(
        ("run", "text"),
        (
            ("ccsnet push runs/photos-ccs me/photos --private", "for you alone"),
            (
                "ccsnet push runs/photos-ccs me/photos --licence apache-2.0 --revision v2",
                "for all, on a branch",
            ),
        ),
    ),
    "bench": About(
        ("backbones...",),
        (
            ("ccsnet bench", "five common backbones"),
            (
                "ccsnet bench mit_b1 resnet50 --sizes 512 1024 --classes 150",
                "those you think of, at your sizes",
            ),
        ),
    ),
    "data": About(
        (),
        (
            ("ccsnet data init photos", "describe your folder, once"),
            ("ccsnet data check photos", "find what is wrong before training does"),
            ("ccsnet data prepare potsdam ~/Downloads", "a published data set"),
        ),
    ),
    "data prepare": About(
        ("datasets", "path..."),
        (
            ("ccsnet data prepare potsdam ~/Downloads", "from the archives in a folder"),
            (
                "ccsnet data prepare loveda Train.zip Val.zip --out /data/loveda",
                "from two archives, to another place",
            ),
        ),
    ),
    "data init": About(
        ("path",),
        (
            ("ccsnet data init photos", "writes photos/dataset.yaml"),
            ("ccsnet data init photos --out mine.yaml", "writes beside the folder"),
        ),
    ),
    "data check": About(
        ("dataset",),
        (
            ("ccsnet data check photos", "your folder"),
            ("ccsnet data check loveda --root /data/loveda --split val", "one split"),
        ),
    ),
    "data browse": About(
        ("dataset",),
        (
            ("ccsnet data browse photos", "writes photos.html"),
            ("ccsnet data browse photos --images 40 --out look.html", "more of it"),
        ),
    ),
    "data import": About(
        ("path",),
        (
            ("ccsnet data import labelled --out photos", "whichever program made it"),
            (
                "ccsnet data import annotations.json --images images --out photos",
                "COCO, its images elsewhere",
            ),
        ),
    ),
    "data shard": About(
        ("dataset",),
        (
            ("ccsnet data shard photos --out shards", "then: ccsnet train shards"),
            ("ccsnet data shard ade20k --out shards --size 512", "larger files"),
        ),
    ),
    "demo": About(
        (),
        (
            ("ccsnet demo", "about 8 minutes on two cores"),
            ("ccsnet demo --steps 50 --out runs/quick", "only to see that all works"),
        ),
    ),
    "list": About(
        ("backbones|datasets|heads|losses|optimizers|recipes",),
        (
            ("ccsnet list recipes", "all settings that have a name"),
            ("ccsnet list backbones convnext", "those with this in their name"),
        ),
        (Option("--again", text="Compute figures anew."),),
    ),
    "doctor": About(
        (),
        (
            ("ccsnet doctor", "what this machine has, and what to mend"),
            ("ccsnet doctor --json doctor.json", "to attach to a question"),
        ),
    ),
    "completion": About(
        ("bash|zsh|fish",),
        (
            (
                "ccsnet completion bash > ~/.local/share/bash-completion/completions/ccsnet",
                "for new shells",
            ),
            ("source <(ccsnet completion bash)", "for this one"),
        ),
    ),
}
