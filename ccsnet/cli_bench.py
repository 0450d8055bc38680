"""`ccsnet bench`: arguments, one call, a row at a time. Like `cli`, this module prints."""

from dataclasses import dataclass
from pathlib import Path

from ccsnet.arguments import before_options, parse
from ccsnet.bench_config import BACKBONES, BenchConfig


@dataclass(frozen=True, kw_only=True)
class BenchArguments(BenchConfig):
    """What to measure."""

    json: Path | None = None
    """Also write the rows to this file, with all digits."""


def bench(arguments: list[str]) -> int:
    """See what models cost here: ccsnet bench [BACKBONES...] [--sizes 512 1024] [...].

    From images in memory to their label maps, with random weights: milliseconds of one image,
    images a second of several at once, memory. Without names, five common backbones. Run nothing
    else meanwhile.
    """
    import json

    from ccsnet.bench import bench as measure
    from ccsnet.catalogue import machine
    from ccsnet.files import atomic_path

    names, rest = before_options(arguments)
    names = names or list(BACKBONES)
    config: BenchArguments = parse(BenchArguments, "bench", rest, description=bench.__doc__)
    width = max(len("backbone"), *map(len, names))
    compiled = ", compiled" * config.compile
    print(f"{machine()}; head {config.head}, {config.classes} classes{compiled}")
    together = f"images/s of {config.batch_size}"
    print(
        f"{'backbone':{width}}   size  precision  parameters  ms/image  {together:>13}     MiB",
        flush=True,
    )
    rows = []
    for cost in measure(names, config):
        rows.append(cost._asdict())
        print(
            f"{cost.backbone:{width}}  {cost.size:5}  {cost.precision:9}  "
            f"{cost.parameters / 1e6:8.1f} M  {1e3 * cost.latency:8.1f}  "
            f"{cost.images_per_second:13.2f}  {cost.bytes / 2**20:6.0f}",
            flush=True,
        )
    if config.json is not None:
        with atomic_path(config.json) as aside:
            found = {"machine": machine(), "head": config.head, "classes": config.classes}
            found |= {"compile": config.compile}
            found |= {"batch_size": config.batch_size, "rows": rows}
            aside.write_text(json.dumps(found, indent=2) + "\n")
    return 0
