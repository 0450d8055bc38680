"""The drawings of docs/method.md: `python -m docs._site.drawings` writes docs/images/method-*.svg.

Hand-set boxes and arrows; what is computed in them is computed by the head's own functions. Colours
are CSS variables, so that a drawing fits light and dark pages, and the site's own switch.
"""

from pathlib import Path

import torch

from ccsnet.heads.ccs import relevant_classes

IMAGES = Path(__file__).parents[1] / "images"
CLASSES = {"sky": "#4f9bd9", "tree": "#4d9a57", "road": "#8b8f9c", "car": "#dd6b3d"}
# A coarse view of a street: what is true in each cell.
SCENE = ("ssssssss", "ttsssstt", "tttssttt", "ttrrrrtt", "trrccrrr", "rrrrrrrr")
STYLE = """
svg.drawing { --ink: #24292f; --soft: #6a737d; --face: #f3f5f7; --edge: #9aa4ae; --one: #b3541e;
  --two: #00796b; max-width: 100%; height: auto; font: 13px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg.drawing { --ink: #e6e8eb; --soft: #a6afb9;
  --face: #2a303b; --edge: #6b7684; --one: #f0a070; --two: #5cc8b8; } }
[data-md-color-scheme] svg.drawing { --ink: #24292f; --soft: #6a737d; --face: #f3f5f7;
  --edge: #9aa4ae; --one: #b3541e; --two: #00796b; }
[data-md-color-scheme="slate"] svg.drawing { --ink: #e6e8eb; --soft: #a6afb9; --face: #2a303b;
  --edge: #6b7684; --one: #f0a070; --two: #5cc8b8; }
svg.drawing text { fill: var(--ink); } svg.drawing .soft { fill: var(--soft); font-size: 12px; }
svg.drawing .box { fill: var(--face); stroke: var(--edge); }
svg.drawing .line { fill: none; stroke: var(--soft); stroke-width: 1.5; }
svg.drawing .one { stroke: var(--one); stroke-dasharray: 5 3; }
svg.drawing .two { stroke: var(--two); stroke-width: 2; }
svg.drawing .head { fill: context-stroke; }
"""


def drawing(name: str, title: str, width: int, height: int, parts: list[str]) -> str:
    """An SVG file, readable aloud by its title."""
    marker = (
        f'<marker id="{name}-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse">'
        '<path class="head" d="M0 0 L8 4 L0 8 z"/></marker>'
    )
    body = "\n".join(part.replace("HEAD", f"url(#{name}-head)") for part in parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" role="img" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<defs>{marker}</defs>\n{body}\n</svg>\n"
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """A line of text; `y` is its baseline."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, *lines: str) -> str:
    """A rounded box with lines of text in its middle, the first of them dark."""
    middle = y + height / 2 + 4.5 - 8 * (len(lines) - 1)
    words = [
        text(x + width / 2, middle + 16 * i, line, "soft" if i else "")
        for i, line in enumerate(lines)
    ]
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" class="box"/>'
    return "".join([shape, *words])


def arrow(*points: tuple[float, float], kind: str = "", head: bool = True) -> str:
    """A line through the points, with a head at its end."""
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    end = ' marker-end="HEAD"' if head else ""
    return f'<path d="M{path}" class="line {kind}"{end}/>'


def cell(x: float, y: float, side: float, colour: str, strength: float = 1.0) -> str:
    """A square of a map."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" fill="{colour}" '
        f'fill-opacity="{strength:.2f}" stroke="var(--edge)" stroke-width="0.5"/>'
    )


def scene(x: float, y: float, side: float) -> list[str]:
    """The street, every cell in its class's colour."""
    by_letter = {name[0]: colour for name, colour in CLASSES.items()}
    return [
        cell(x + side * column, y + side * row, side, by_letter[letter])
        for row, letters in enumerate(SCENE)
        for column, letter in enumerate(letters)
    ]


def coarse_logits() -> torch.Tensor:
    """1 N h w: a coarse prediction of the street, right nearly everywhere and nowhere sure."""
    letters = [name[0] for name in CLASSES]
    label = torch.tensor([[letters.index(letter) for letter in row] for row in SCENE])
    hard = torch.nn.functional.one_hot(label, len(letters)).permute(2, 0, 1)[None].float()
    padded = torch.nn.functional.pad(hard, (1, 1, 1, 1), mode="replicate")
    near = torch.nn.functional.avg_pool2d(padded, 3, stride=1)
    return 3.0 * hard + 4.0 * near


def overview() -> str:
    """The whole head: who reads what from whom."""
    rows = {4: 54, 8: 124, 16: 194, 32: 296}
    which, centre_bus = 478, 514
    parts = [*scene(8, 144, 11), text(52, 232, "image"), arrow((98, 177), (118, 177))]
    parts += [box(120, 34, 74, 292, "backbone"), text(356, 38, "queries: one a place", "soft")]
    for stride, y in rows.items():
        side = {4: 50, 8: 40, 16: 30, 32: 20}[stride]
        step = [] if side > 22 else [(240 + side / 2, y), (258, y)]
        parts += [
            arrow((194, y), (238 - side / 2, y)),
            box(240 - side / 2, y - side / 2, side, side),
            text(270, y + 16, f"stride {stride}", "soft", "start") if stride < 16 else "",
            arrow(*step, (258 if step else 240 + side / 2, y - 11), (548, y - 11)),
            box(550, y - 22, 130, 44, "class attention"),
            arrow((which, y), (548, y), kind="one"),
            arrow((centre_bus, y + 11), (548, y + 11), kind="two"),
            arrow((680, y), (724, y)),
        ]
    parts += [
        arrow((240, rows[16] + 15), (240, 238), (260, 238)),
        text(218, 232, "16", "soft"),
        box(262, 218, 150, 40, "coarse prediction", "N class scores a place"),
        arrow((240, rows[32] + 10), (240, 342), (260, 342)),
        text(222, 330, "32", "soft"),
        box(262, 322, 150, 40, "N class centres", "one set for the image"),
        arrow((337, 258), (337, 320), kind="one"),
        text(345, 308, "where each class is", "soft", "start"),
        arrow((412, 238), (which, 238), (which, rows[4]), kind="one", head=False),
        arrow((which, 238), (which, rows[32]), kind="one", head=False),
        arrow((412, 342), (centre_bus, 342), (centre_bus, rows[4] + 11), kind="two", head=False),
        box(726, 34, 74, 292, "fusion", "to stride 4"),
        arrow((800, 177), (822, 177)),
        *scene(826, 144, 11),
        text(870, 232, "labels"),
        arrow((262, 390), (296, 390), kind="one", head=False),
        text(304, 394, "which k classes may be read here", "soft", "start"),
        arrow((530, 390), (564, 390), kind="two", head=False),
        text(572, 394, "keys and values, shared by all stages", "soft", "start"),
    ]
    title = "From an image to labels: four maps, a coarse prediction, class centres, attention"
    return drawing("overview", title, 926, 408, parts)


def centres() -> str:
    """A class centre is a mean of the features, weighed by the softmax over space."""
    coarse = coarse_logits()[0]
    weights = torch.softmax(coarse.flatten(1), dim=1).view_as(coarse)
    parts = [*scene(14, 40, 20), text(94, 30, "coarse prediction")]
    parts.append(text(94, 182, "stride 16", "soft"))
    for number, (name, colour) in enumerate(CLASSES.items()):
        left = 226 + 152 * number
        share = weights[number] / weights[number].max()
        for row in range(len(SCENE)):
            for column in range(len(SCENE[0])):
                strength = float(share[row, column])
                parts.append(cell(left + 16 * column, 40 + 16 * row, 16, colour, strength))
        parts.append(text(left + 64, 30, f"weights of {name}"))
        parts.append(arrow((left + 64, 140), (left + 64, 168)))
        shades = [0.25 + 0.1 * ((5 * i + 3 * number) % 7) for i in range(7)]
        parts += [cell(left + 8 + 16 * i, 172, 16, colour, s) for i, s in enumerate(shades)]
        parts.append(text(left + 64, 206, f"centre of {name}"))
    parts.append(
        text(
            515,
            234,
            "each set of weights adds up to 1 over the image; a centre is the sum of "
            "weight x stride-32 feature",
            "soft",
        )
    )
    return drawing("centres", "How the class centres are gathered", 840, 246, parts)


def relevant() -> str:
    """The k best classes of a coarse cell serve all finer places in it."""
    coarse = coarse_logits()
    row, column, top_k = 4, 3, 2
    chosen = relevant_classes(coarse, top_k)[0, :, row, column].tolist()
    scores = torch.softmax(coarse[0, :, row, column], dim=0).tolist()
    parts = [*scene(14, 40, 20), text(94, 30, "coarse prediction")]
    left, top = 14 + 20 * column, 40 + 20 * row
    parts.append(
        f'<rect x="{left}" y="{top}" width="20" height="20" fill="none" stroke="var(--ink)" '
        'stroke-width="3"/>'
    )
    parts += [text(94, 182, "one cell, stride 16", "soft"), arrow((180, 110), (214, 110))]
    parts.append(text(300, 30, f"its scores, k = {top_k}"))
    for number, (name, colour) in enumerate(CLASSES.items()):
        y = 52 + 32 * number
        parts.append(text(258, y + 14, name, "" if chosen[number] else "soft", "end"))
        parts.append(cell(266, y, 20, colour, 1.0 if chosen[number] else 0.2))
        width = 4 + 80 * scores[number]
        parts.append(
            f'<rect x="292" y="{y + 4}" width="{width:.1f}" height="12" fill="{colour}" '
            f'fill-opacity="{1.0 if chosen[number] else 0.2}"/>'
        )
    names = [name for name, is_relevant in zip(CLASSES, chosen, strict=True) if is_relevant]
    parts.append(text(300, 198, f"relevant: {' and '.join(names)}", "soft"))
    parts.append(arrow((398, 110), (432, 110)))
    parts.append(text(560, 30, "places inside the cell"))
    for number, (stride, side) in enumerate({4: 4, 8: 2, 16: 1}.items()):
        x = 446 + 84 * number
        size = 64 / side
        for i in range(side):
            for j in range(side):
                parts.append(
                    f'<rect x="{x + size * j:g}" y="{64 + size * i:g}" width="{size:g}" '
                    f'height="{size:g}" class="box"/>'
                )
        parts.append(text(x + 32, 148, f"stride {stride}", "soft"))
        parts.append(text(x + 32, 166, f"{side} x {side}", "soft"))
    parts.append(arrow((700, 96), (734, 96)))
    parts.append(text(790, 30, "read from"))
    for number, (name, colour) in enumerate(CLASSES.items()):
        y = 44 + 32 * number
        strength = 1.0 if chosen[number] else 0.15
        parts += [cell(744 + 12 * i, y, 12, colour, strength) for i in range(5)]
        parts.append(text(812, y + 11, name, "" if chosen[number] else "soft", "start"))
    parts.append(text(790, 182, "centres of other", "soft"))
    parts.append(text(790, 198, "classes are masked", "soft"))
    return drawing("relevant", "Which class centres a place may read from", 860, 212, parts)


DRAWINGS = {"method-overview": overview, "method-centres": centres, "method-relevant": relevant}


if __name__ == "__main__":
    for file, draw in DRAWINGS.items():
        (IMAGES / f"{file}.svg").write_text(draw(), encoding="utf-8")
