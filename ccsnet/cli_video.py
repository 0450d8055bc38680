"""`ccsnet video`: an argument, one call, a line. Like `cli`, this module prints."""

from dataclasses import dataclass, field
from pathlib import Path

from ccsnet.arguments import parse, positional, second
from ccsnet.predict_config import PredictConfig
from ccsnet.stopping import INTERRUPTED_STATUS


@dataclass(frozen=True, kw_only=True)
class VideoArguments:
    """What to write, and how."""

    out: Path
    """The video to write: .mp4, .mov, .mkv or .avi."""
    smooth: float = 0.0
    """What the frames before count in each, 0 to below 1: 0.7 ends most flicker."""
    opacity: float = 0.5
    """Of the paint, 0 to 1."""
    max_frames: int | None = None
    """Stop after so many."""
    how: PredictConfig = field(default_factory=PredictConfig)
    overwrite: bool = False
    """Replace a video that is there already."""
    cpu: bool = False
    """Use the processor even where there is a GPU."""


def video(arguments: list[str]) -> int:
    """Label a video: ccsnet video RUN INPUT --out OUT.mp4 [--smooth 0.7] [...].

    INPUT is a video file, or the number of a camera, 0 the first. OUT shows the classes painted
    over the frames, at their size and rate, without sound. Ctrl-C ends it whole.
    """
    from ccsnet.predict import load
    from ccsnet.terminal import TerminalReporter, make_console
    from ccsnet.video import label_video

    run_name, arguments = positional("run", arguments, "video", VideoArguments, video.__doc__)
    question = f"Which video? ccsnet video {run_name} INPUT.mp4 --out OUT.mp4"
    source, arguments = second(question, arguments, "video", VideoArguments, video.__doc__)
    options: VideoArguments = parse(VideoArguments, "video", arguments, description=video.__doc__)
    console = make_console()
    reporter = TerminalReporter(console)
    predictor = load(run_name, "cpu" if options.cpu else None)
    predictor.note = reporter.note
    made = label_video(
        predictor,
        int(source) if source.isdecimal() and not Path(source).exists() else source,
        options.out,
        config=options.how,
        smooth=options.smooth,
        opacity=options.opacity,
        max_frames=options.max_frames,
        overwrite=options.overwrite,
        reporter=reporter,
    )
    if made.missing:
        reporter.note(
            f"{made.missing} of {made.frames + made.missing} frames could not be read: the video "
            "is damaged, or says a wrong number."
        )
    height, width = made.size
    console.print(
        f"{made.out}: {made.frames} frames of {width} x {height} at {made.rate:g} per second, "
        f"without sound; labelled at {made.frames_per_second:.3g} per second"
        f"{', and stopped there' * made.interrupted}.",
        highlight=False,
        markup=False,
    )
    return INTERRUPTED_STATUS if made.interrupted else 0
