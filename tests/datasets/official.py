"""The data sets' archives as their authors publish them, with a few tiny images in each.

Names, folders, encodings and kinds of archive are the official ones; only what is drawn is not.
Every label holds every value or colour of its data set, the unlabelled ones included.
"""

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ccsnet.datasets._archives import ContextToPng
from ccsnet.datasets._spec import DatasetSpec
from tests.datasets.encoding import (
    SIZE,
    drawn,
    encoded,
    jpeg,
    lines,
    mat,
    photo,
    png,
    run_lengths,
    tiff,
    tile_truth,
    write_tar,
    write_zip,
)

Truth = dict[str, dict[str, np.ndarray | None]]
"""Split -> name of the pair -> the class of each pixel, None where there is no label."""


def cityscapes(spec: DatasetSpec, out: Path) -> Truth:
    truth: Truth = {}
    images, labels = {"README": b"", "license.txt": b""}, {"README": b"", "license.txt": b""}
    for split, city in (("train", "aachen"), ("val", "frankfurt"), ("test", "berlin")):
        truth[split] = {}
        for i in range(2):
            raw, classes = drawn(spec, i)
            stem = f"{split}/{city}/{city}_00000{i}_000019"
            images[f"leftImg8bit/{stem}_leftImg8bit.png"] = png(photo(i))
            # The test split's hold nothing but what is left out.
            labels[f"gtFine/{stem}_gtFine_labelIds.png"] = png(raw if split != "test" else raw % 4)
            labels[f"gtFine/{stem}_gtFine_color.png"] = png(photo(i))
            labels[f"gtFine/{stem}_gtFine_instanceIds.png"] = png(raw.astype(np.uint16) * 1000)
            labels[f"gtFine/{stem}_gtFine_polygons.json"] = b"{}"
            name = f"{stem.removeprefix(f'{split}/')}_leftImg8bit"
            truth[split][name] = None if split == "test" else classes
    write_zip(out / "leftImg8bit_trainvaltest.zip", images)
    write_zip(out / "gtFine_trainvaltest.zip", labels)
    return truth


def ade20k(spec: DatasetSpec, out: Path) -> Truth:
    truth: Truth = {"test": {"ADE_test_00000001": None}}
    top = "ADEChallengeData2016"
    files = {f"{top}/objectInfo150.txt": b"", f"{top}/sceneCategories.txt": b""}
    for split, folder in (("train", "training"), ("val", "validation")):
        truth[split] = {}
        for i in range(1, 3):
            raw, name = drawn(spec, i)[0], f"ADE_{split}_{i:08}"
            files[f"{top}/images/{folder}/{name}.jpg"] = jpeg(i)
            files[f"{top}/annotations/{folder}/{name}.png"] = png(raw)
            truth[split][name] = drawn(spec, i)[1]
    write_zip(out / f"{top}.zip", files)
    test = {"release_test/list.txt": b"", "release_test/testing/ADE_test_00000001.jpg": jpeg(3)}
    write_zip(out / "release_test.zip", test)
    return truth


def pascal_voc12(spec: DatasetSpec, out: Path) -> Truth:
    top, sbd = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
    lists = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    # SBD shares images with both lists of VOC; its own border-free labels differ.
    more = {"train": ["2008_000003", "2007_000032", "2008_000009"], "val": ["2007_000033"]}
    palette = [part for colour in spec.colours for part in colour]
    main = {f"{top}/Annotations/2007_000032.xml": b""}
    aug = {"benchmark_RELEASE/README": b""}
    truth: Truth = {"test": {"2008_000001": None}}
    for split, names in lists.items():
        main[f"{top}/ImageSets/Segmentation/{split}.txt"] = lines(names)
        truth[split] = {name: drawn(spec, int(name[-3:]))[1] for name in names}
        for name in names:
            label = encoded(drawn(spec, int(name[-3:]))[0], "PNG", palette)
            main[f"{top}/SegmentationClass/{name}.png"] = label
    truth["trainaug"] = dict(truth["train"])
    for split, names in more.items():
        aug[f"{sbd}/{split}.txt"] = lines(names)
        for name in names:
            raw = drawn(spec, int(name[-3:]) + 1)[0]
            raw[raw == 255] = 0
            # As MATLAB writes it: a structure with the maps of borders beside the classes.
            labels = {"Boundaries": np.zeros((20, 1)), "Segmentation": raw, "CategoriesPresent": 1}
            aug[f"{sbd}/cls/{name}.mat"] = mat(GTcls=labels)
            aug[f"{sbd}/img/{name}.jpg"] = jpeg(9)
            if name.startswith("2008"):
                truth["trainaug"][name] = raw
    for name in {name for names in (*lists.values(), *more.values()) for name in names}:
        main[f"{top}/JPEGImages/{name}.jpg"] = jpeg(int(name[-3:]))
    write_tar(out / "VOCtrainval_11-May-2012.tar", main)
    write_tar(out / "benchmark.tgz", aug, "w:gz")
    test = {f"{top}/JPEGImages/2008_000001.jpg": jpeg(1)}
    test[f"{top}/ImageSets/Segmentation/test.txt"] = lines(["2008_000001"])
    write_tar(out / "VOC2012test.tar", test)
    return truth


def pascal_context(spec: DatasetSpec, out: Path) -> Truth:
    (step,) = (step for step in spec.steps if isinstance(step, ContextToPng))
    with_background = len(step.raw_ids) == spec.num_classes
    images, annotations, truth = [], [], {"train": {}, "val": {}}
    files = {}
    for i, phase in enumerate(("train", "train", "val"), start=1):
        name = f"2008_{i:06}"
        files[f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg"] = jpeg(i)
        image = {"image_id": 2008000000 + i, "phase": phase, "file_name": f"{name}.jpg"}
        images.append(image | dict(zip(("height", "width"), SIZE, strict=True)))
        place = np.roll(np.resize(np.arange(len(step.raw_ids)), SIZE), i)
        for index, category in enumerate(step.raw_ids):
            if index == 0:
                continue  # The background is where nothing is annotated.
            mask = place == index
            rle = {"size": list(SIZE), "counts": run_lengths(mask)}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["image_id"], "iscrowd": 0}
                | {"category_id": category, "segmentation": rle, "area": int(mask.sum())}
            )
        truth[phase][name] = place if with_background else np.where(place, place - 1, 255)
    categories = [{"category_id": raw, "name": str(raw)} for raw in step.raw_ids[1:]]
    content = {"info": {}, "images": images, "categories": categories, "parts": []}
    content |= {"annos_segmentation": annotations, "annos_occlusion": [], "annos_boundary": []}
    write_tar(out / "VOCtrainval_03-May-2010.tar", files)
    (out / "trainval_merged.json").write_text(json.dumps(content))
    return truth


def coco_stuff10k(spec: DatasetSpec, out: Path) -> Truth:
    truth: Truth = {"train": {}, "val": {}}
    files = {"cocostuff-labels.txt": b"", "README.md": b""}
    lists = {"train": [77, 110], "test": [34]}
    for listed, numbers in lists.items():
        names = [f"COCO_train2014_{number:012}" for number in numbers]
        files[f"imageLists/{listed}.txt"] = lines(names)
        for number, name in zip(numbers, names, strict=True):
            raw, classes = drawn(spec, number)
            files[f"images/{name}.jpg"] = jpeg(number)
            content = mat(S=raw.astype(np.uint16), names=["unlabeled"], captions=["a cat"])
            files[f"annotations/{name}.mat"] = content
            truth["val" if listed == "test" else "train"][name] = classes
    files["imageLists/all.txt"] = files["imageLists/train.txt"] + files["imageLists/test.txt"]
    write_zip(out / "cocostuff-10k-v1.1.zip", files)
    return truth


def coco_stuff164k(spec: DatasetSpec, out: Path) -> Truth:
    truth: Truth = {"train": {}, "val": {}}
    labels = {}
    for split in truth:
        images = {}
        for number in (9, 25) if split == "train" else (139,):
            raw, classes = drawn(spec, number)
            name = f"{number:012}"
            images[f"{split}2017/{name}.jpg"] = jpeg(number)
            labels[f"{split}2017/{name}.png"] = png(raw)
            truth[split][name] = classes
        write_zip(out / f"{split}2017.zip", images)
    write_zip(out / "stuffthingmaps_trainval2017.zip", labels)
    return truth


def chase_db1(spec: DatasetSpec, out: Path) -> Truth:
    files, found = {}, {}
    for child in range(1, 15):
        for side in "LR":
            name = f"Image_{child:02}{side}"
            vessels = drawn(spec, child + ord(side))[1].astype(bool)
            files[f"{name}.jpg"] = jpeg(child)
            files[f"{name}_1stHO.png"] = png(vessels)  # 1 bit, as the authors' files.
            files[f"{name}_2ndHO.png"] = png(~vessels)
            found[name] = vessels.astype(np.uint8)
    write_zip(out / "CHASEDB1.zip", files)
    names = sorted(found)
    return {
        "train": {name: found[name] for name in names[:20]},
        "val": {name: found[name] for name in names[20:]},
    }


def drive(spec: DatasetSpec, out: Path) -> Truth:
    truth: Truth = {"train": {}, "val": {}}
    parts = (("training", "train", range(21, 41)), ("test", "val", range(1, 21)))
    for folder, split, numbers in parts:
        files = {}
        for number in numbers:
            raw, classes = drawn(spec, number)
            clean = np.where(classes, 255, 0).astype(np.uint8)
            stem = f"{folder}/images/{number:02}_{folder}"
            files[f"{stem}.tif"] = tiff(photo(number))
            files[f"{folder}/mask/{number:02}_{folder}_mask.gif"] = encoded(raw, "GIF")
            files[f"{folder}/1st_manual/{number:02}_manual1.gif"] = encoded(clean, "GIF")
            truth[split][f"{number:02}_{folder}"] = classes
        write_zip(out / f"{folder}.zip", files)
    return truth


def hrf(spec: DatasetSpec, out: Path) -> Truth:
    truth: Truth = {"train": {}, "val": {}}
    kinds = {"healthy": "h.jpg", "glaucoma": "g.jpg", "diabetic_retinopathy": "dr.JPG"}
    for kind, end in kinds.items():
        images, masks = {}, {}
        for number in range(1, 16):
            raw, classes = drawn(spec, number)
            images[f"{number:02}_{end}"] = jpeg(number)
            name = f"{number:02}_{end.partition('.')[0]}"
            masks[f"{name}.tif"] = tiff(raw)
            truth["train" if number <= 5 else "val"][name] = classes
        write_zip(out / f"{kind}.zip", images)
        write_zip(out / f"{kind}_manualsegm.zip", masks)
    return truth


def stare(spec: DatasetSpec, out: Path) -> Truth:
    numbers = (1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324)
    images, first, second, found = {}, {}, {}, {}
    for number in numbers:
        raw, classes = drawn(spec, number)
        name = f"im{number:04}"
        images[f"{name}.ppm.gz"] = gzip.compress(encoded(photo(number), "PPM"))
        first[f"{name}.ah.ppm.gz"] = gzip.compress(encoded(raw, "PPM"))
        second[f"{name}.vk.ppm.gz"] = gzip.compress(encoded(255 - raw, "PPM"))
        found[name] = classes
    write_tar(out / "stare-images.tar", images)
    write_tar(out / "labels-ah.tar", first)
    write_tar(out / "labels-vk.tar", second)
    names = list(found)
    return {
        "train": {name: found[name] for name in names[:10]},
        "val": {name: found[name] for name in names[10:]},
    }


def dark_zurich(spec: DatasetSpec, out: Path) -> Truth:
    files, truth = {"README.md": b"", "lists_file_names/val_filenames.txt": b""}, {}
    for number in (51, 324):
        raw, classes = drawn(spec, number)
        stem = f"val/night/GOPR0356/GOPR0356_frame_{number:06}"
        files[f"rgb_anon/{stem}_rgb_anon.png"] = png(photo(number))
        files[f"gt/{stem}_gt_labelTrainIds.png"] = png(raw)
        files[f"gt/{stem}_gt_labelColor.png"] = png(photo(number))
        files[f"gps/{stem}_gps.txt"] = b""
        truth[f"{stem.removeprefix('val/night/')}_rgb_anon"] = classes
    reference = "rgb_anon/val_ref/day/GOPR0356_ref/GOPR0356_frame_000051_ref_rgb_anon.png"
    files[reference] = png(photo(0))
    write_zip(out / "Dark_Zurich_val_anon.zip", files)
    return {"val": truth}


def nighttime_driving(spec: DatasetSpec, out: Path) -> Truth:
    files, truth = {}, {}
    for number in (10, 20):
        raw, classes = drawn(spec, number)
        name = f"0_frame_{number:04}"
        labels = f"gtCoarse_daytime_trainvaltest/test/night/{name}_gtCoarse"
        files[f"leftImg8bit/test/night/{name}_leftImg8bit.png"] = png(photo(number))
        files[f"{labels}_labelTrainIds.png"] = png(raw)
        files[f"{labels}_color.png"] = png(photo(number))
        truth[f"{name}_leftImg8bit"] = classes
    files = {f"NighttimeDrivingTest/{name}": data for name, data in files.items()}
    write_zip(out / "NighttimeDrivingTest.zip", files)
    return {"test": truth}


def loveda(spec: DatasetSpec, out: Path) -> Truth:
    truth: Truth = {}
    for start, folder in ((0, "Train"), (2522, "Val"), (4191, "Test")):
        found, files = {}, {}
        for number, area in ((start, "Rural"), (start + 1, "Urban")):
            raw, classes = drawn(spec, number)
            files[f"{folder}/{area}/images_png/{number}.png"] = png(photo(number))
            if folder != "Test":
                files[f"{folder}/{area}/masks_png/{number}.png"] = png(raw)
            found[f"{area}/images_png/{number}"] = None if folder == "Test" else classes
        truth[folder.lower()] = found
        write_zip(out / f"{folder}.zip", files)
    return truth


def _isprs(
    spec: DatasetSpec, ids: Mapping[str, list[str]], prefix: str = ""
) -> tuple[dict[str, tuple[bytes, bytes]], Truth]:
    """Image and label of each id, and the truth of their tiles."""
    files, truth = {}, {}
    for split, some in ids.items():
        truth[split] = {}
        for number, name in enumerate(some):
            size = (530 + number, 1030)
            raw, classes = drawn(spec, number, size)
            files[name] = (tiff(photo(number, size)), tiff(raw))
            tiles = tile_truth(classes, 512, 0, lambda *at, n=name: "_".join(map(str, (n, *at))))
            truth[split] |= {f"{prefix}{tile}": label for tile, label in tiles.items()}
    return files, truth


def potsdam(spec: DatasetSpec, out: Path) -> Truth:
    files, truth = _isprs(spec, {"train": ["2_10", "7_12"], "val": ["5_15"]})
    images = {f"2_Ortho_RGB/top_potsdam_{n}_RGB.tif": image for n, (image, _) in files.items()}
    labels = {f"top_potsdam_{n}_label_noBoundary.tif": label for n, (_, label) in files.items()}
    images["2_Ortho_RGB/top_potsdam_2_10_RGB.tfw"] = b""
    write_zip(out / "2_Ortho_RGB.zip", images)
    write_zip(out / "5_Labels_all_noBoundary.zip", labels)
    return truth


def vaihingen(spec: DatasetSpec, out: Path) -> Truth:
    files, truth = _isprs(spec, {"train": ["1", "11"], "val": ["2"]}, prefix="area")
    images = {f"top/top_mosaic_09cm_area{n}.tif": image for n, (image, _) in files.items()}
    labels = {f"top_mosaic_09cm_area{n}_noBoundary.tif": label for n, (_, label) in files.items()}
    images["dsm/dsm_09cm_matching_area1.tif"] = b""
    labels["top_mosaic_09cm_area9_noBoundary.tif"] = labels["top_mosaic_09cm_area1_noBoundary.tif"]
    name = "ISPRS_semantic_labeling_Vaihingen"
    write_zip(out / f"{name}.zip", images)
    write_zip(out / f"{name}_ground_truth_eroded_COMPLETE.zip", labels)
    return truth


def isaid(spec: DatasetSpec, out: Path) -> Truth:
    truth: Truth = {"train": {}, "val": {}, "test": {"P0006": None, "P0009": None}}
    # Archive -> its image and that one's size: larger, smaller and partly smaller than a tile.
    parts = {
        ("train", 1): (0, (900, 910)),
        ("train", 2): (1, (40, 60)),
        ("train", 3): (2, (50, 950)),
        ("val", 1): (3, (896, 896)),
        ("test", 1): (6, SIZE),
        ("test", 2): (9, SIZE),
    }
    masks: dict[str, dict[str, bytes]] = {"train": {}, "val": {}}
    for (split, part), (number, size) in parts.items():
        name = f"P{number:04}"
        content = {f"images/{name}.png": png(photo(number, size))}
        write_zip(out / split / "images" / f"part{part}.zip", content)
        if split == "test":
            continue
        raw, classes = drawn(spec, number, size)
        # The unlabelled colour is no official one: it stands for what is filled up.
        raw[classes == 255], classes[classes == 255] = 0, 0
        masks[split][f"images/{name}_instance_color_RGB.png"] = png(raw)
        truth[split] |= tile_truth(
            classes, 896, 384, lambda x0, y0, x1, y1, n=name: f"{n}_{y0}_{y1}_{x0}_{x1}"
        )
    for split, files in masks.items():
        write_zip(out / split / "Semantic_masks" / "images.zip", files)
    return truth


BUILDERS: dict[str, Callable[[DatasetSpec, Path], Truth]] = {
    build.__name__: build
    for build in (
        *(cityscapes, ade20k, pascal_voc12, coco_stuff10k, coco_stuff164k),
        *(chase_db1, drive, hrf, stare, dark_zurich, nighttime_driving, loveda),
        *(potsdam, vaihingen, isaid),
    )
} | {"pascal_context_60": pascal_context, "pascal_context_59": pascal_context}


def from_patterns(spec: DatasetSpec, root: Path) -> Truth:
    """A tree where the patterns of a set look, for sets that come in no archives."""
    truth: Truth = {}
    for split in spec.splits:
        truth[split] = {}
        for part in spec.parts(split):
            assert part.names is None, "a set with lists needs a tree of its own"
            assert part.labels is not None, "a set with splits without labels too"
            for i in range(2):
                raw, classes = drawn(spec, i)
                image, label = (
                    root / pattern.replace("*", f"{split}{i}")
                    for pattern in (part.images, part.labels)
                )
                for path, pixels in ((image, photo(i)), (label, raw)):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    kind = {".jpg": "JPEG", ".tif": "TIFF"}.get(path.suffix, "PNG")
                    path.write_bytes(encoded(pixels, kind))
                name = image.relative_to(root / part.folder).with_suffix("").as_posix()
                truth[split][name] = classes
    return truth
