"""What does the user read at the end of a run? What came out, what was gained, where to look, and how to go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovit_deploy.printing import plural, quote

if TYPE_CHECKING:
    from dovit_deploy.bundle.manifest import Manifest
    from dovit_deploy.runtime.audit import DriftAlarm
    from dovit_deploy.runtime.run import RunOutcome, RunPlan
    from dovit_deploy.sources.source import Source

PARTS = ("decode", "preprocess", "model", "postprocess")
MOST_EVERY = 8
"""That one of more frames runs is not recommended: it is not measured (docs/benchmarks.md)."""
WARP_MS = 8.0
"""Of a megapixel, what moving an answer is taken to cost: measured were 5 to 6 on one core (docs/run.md)."""
NOT_COMPARED = "speed against dense: not measured by run; dovit bench measures it"


def closing_lines(outcome: RunOutcome, plan: RunPlan, source: Source, manifest: Manifest) -> list[str]:
    """The results of a run, as lines for stdout."""
    summary, noun = outcome.summary, noun_of(source)
    if not summary["frames"]:
        return [plural(0, noun), files_line(plan, source)]
    return [
        *speed_lines(summary, noun=noun, seconds=outcome.seconds),
        *gain_lines(summary, noun=noun, has_dense=manifest.spec.has_dense),
        *keeping_up_lines(summary, plan, source, task=manifest.task),
        files_line(plan, source),
    ]


def noun_of(source: Source) -> str:
    """What the source gives, in the singular."""
    return "image" if source.kind == "images" else "frame"


def speed_lines(summary: dict[str, Any], *, noun: str, seconds: float) -> list[str]:
    """How many there were and how fast it went; one alone has a latency and no rate.

    Args:
        summary: of at least one frame.
        noun: "frame" or "image".
        seconds: from the first frame that was read to the last that was written.
    """
    from dovit_deploy.runtime.outputs import FRAMES_FOR_P99

    frames, latency = summary["frames"], summary["latency_ms"]
    parts = ", ".join(f"{part} {latency[part]['p50']:.1f}" for part in PARTS)
    engine = f"{summary['engine']} {summary['precision']}"
    if frames == 1:
        return [f"{plural(1, noun)}, {engine}: {latency['total']['p50']:.1f} ms ({parts})"]
    p99 = f", {latency['total']['p99']:.1f} p99" if frames >= FRAMES_FOR_P99 else ""
    rate = frames / max(seconds, 1e-3)
    return [
        f"{plural(frames, noun)} in {duration(seconds)}, {engine}: {rate:.1f} {noun}s per second",
        f"latency per {noun} (ms): {latency['total']['p50']:.1f} median{p99}; {parts}",
    ]


def gain_lines(summary: dict[str, Any], *, noun: str, has_dense: bool) -> list[str]:
    """What stopping tokens saved, and that only a measurement says how much time that is."""
    kept = " -> ".join(f"{stage['mean']:.0f}" for stage in summary["tokens"]["kept"])
    macs = summary["gmacs"]
    lines = [
        f"FLOPs saved: {summary['flops_saved']['mean']:z.1%} "
        f"({macs['actual']['mean']:.2f} of {macs['dense']['mean']:.2f} GMACs); tokens per stage: {kept}"
    ]
    if summary["still"]:
        lines.append(f"{plural(summary['still'], 'frame')} repeated the one before, bit for bit, and took its answer")
    if summary["filled"]:
        lines.append(filled_line(summary["filled"], noun=noun))
    if summary["compiling"]:
        lines.append(compiling_line(summary["compiling"], noun=noun))
    if summary["deadline"]:
        lines.append(deadline_line(summary["deadline"], frames=plural(summary["frames"], noun)))
    if summary["audit"]:
        lines.append(audit_line(summary["audit"], noun=noun))
    if summary["dense"]:
        return [*lines, "nothing was stopped (--dense)"]
    return [*lines, NOT_COMPARED] if has_dense else lines


def filled_line(filled: dict[str, Any], *, noun: str) -> str:
    """How many frames did not run, what they took, and how long the others took the model."""
    moved = ", moved along with the image" if filled["by"] == "warp" else ""
    ran = filled["model_ms"]
    step = "" if ran is None else f"; model step of those that ran (ms): {ran['p50']:.1f} median"
    return f"{plural(filled['frames'], noun)} took the answer of the last one that ran{moved}{step}"


def keeping_up_lines(summary: dict[str, Any], plan: RunPlan, source: Source, *, task: str) -> list[str]:
    """For a video whose frames come faster than the model takes: how it would keep up, if it can."""
    # Only maps of classes can be moved.
    if source.video is None or plan.between is not None or task != "segmentation":
        return []
    interval, latency = 1e3 / float(source.video.rate), summary["latency_ms"]
    # Reading is done beside it.
    taken = sum(latency[part]["p50"] for part in PARTS[1:])
    if taken <= plan.every * interval:
        return []
    warping = WARP_MS * math.prod(source.video.size) / 1e6
    # In the time of so many frames one runs, and the answer of that is moved to the others.
    every = math.ceil((taken - warping) / (interval - warping)) if warping < interval else math.inf
    if every > MOST_EVERY:
        return []
    return [
        f"frames come every {plan.every * interval:.0f} ms, and one takes {taken:.0f} without reading: "
        f"--every {every} --warp would keep up"
    ]


def compiling_line(compiling: dict[str, Any], *, noun: str) -> str:
    """What it cost that the engine compiles at the first use of a size."""
    cold, warm = (compiling["model_ms"][name] for name in ("cold", "warm"))
    others = "" if warm is None else f", of the others {warm['p99']:.1f}"
    return (
        f"something was compiled during {plural(compiling['frames'], noun)}: "
        f"model p99 of these {cold['p99']:.1f} ms{others}"
    )


def deadline_line(deadline: dict[str, Any], *, frames: str) -> str:
    """What keeping it took; `frames`: "9 images"."""
    what = f"deadline {deadline['ms']:g} ms of the model step"
    late = f"; too short for the windows of {deadline['late_frames']}" if deadline["late_frames"] else ""
    if not deadline["capped_frames"]:
        return f"{what}: no token was stopped for it{late}"
    each = deadline["capped_tokens"] / deadline["capped_frames"]
    return f"{what}: stopped {each:.0f} tokens more in {deadline['capped_frames']} of {frames}, the surest first{late}"


def audit_line(audit: dict[str, Any], *, noun: str) -> str:
    """What running a part of the frames dense showed, and what it cost."""
    ran = f"audit: {plural(audit['frames'], noun)} ran dense, too ({audit['seconds']:.1f} s, in no latency)"
    if not audit["frames"]:
        return ran
    asked = f"at most {audit['max_disagree']:.2%} asked for"
    found = plural(len(audit["alarms"]), "alarm")
    if not audit["alarms"]:
        found = f"no alarm (evidence {audit['evidence']:.2g} of {audit['alarm_at']:g})"
    return f"{ran}; {audit['differing']:.2%} of their pixels differ from it, {asked}: {found}"


def drift_line(alarm: DriftAlarm) -> str:
    """An alarm, and what is run from now on."""
    from dovit_deploy.runtime.settings import short_thresholds

    if alarm.following is None:
        then = "the run goes on as it is; calibrate on images like these, or run --on-drift tighten or dense"
    elif alarm.following.dense:
        then = "dense from here on"
    else:
        then = f"thresholds {', '.join(map(str, short_thresholds(alarm.following.thresholds)))} from here on"
    return (
        f"drift at frame {alarm.frame}, after {alarm.audited} audited: lately {alarm.differing:.2%} of the pixels "
        f"differ from the dense answer, and {alarm.max_disagree:.2%} at most is what was asked for; {then}"
    )


def files_line(plan: RunPlan, source: Source) -> str:
    """The folder, and what is in it, what to look at first."""
    from dovit_deploy.runtime.outputs import COCO_FILE, KINDS, REPORT_PAGE, ROWS, SUMMARY

    names = [name for kind in KINDS if kind in plan.kinds for name in (f"{kind}.mp4", kind)]
    there = [
        _named(plan.folder / name, alone=source.count == 1) for name in (*names, COCO_FILE, REPORT_PAGE, ROWS, SUMMARY)
    ]
    return f"{plan.folder}: {', '.join(name for name in there if name)}"


def _named(path: Path, *, alone: bool) -> str:
    """How a file is listed; a folder with its one image where there is no other; "" where it was not written."""
    if not path.is_dir():
        return path.name if path.exists() else ""
    images = sorted(path.iterdir()) if alone else []
    return f"{path.name}/{images[0].name}" if images else f"{path.name}/"


def duration(seconds: float) -> str:
    """ "4.1 s", "3 min 20 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def bench_command(
    bundle: Path | None,
    source: str,
    *,
    recursive: bool,
    engine: str,
    precision: str | None,
    threads: int | None = None,
) -> str:
    """What measures the speed of the same model against dense, on the same frames where they can be read again.

    Args:
        bundle: as given; None is the default model.
        source: as given to `run`. A camera or an address gives other frames, and may need a password.
        recursive, engine, precision: as given to `run`.
        threads: of one image, where a number was given.
    """
    words = ["dovit bench"]
    if bundle is not None:
        words.append(quote(str(bundle)))
    if "://" not in source and not source.isdecimal():
        words.append(f"--frames {quote(source)}")
        words += ["--recursive"] if recursive else []
    if engine != "onnxruntime":
        words.append(f"--engine {engine}")
    if precision is not None:
        words.append(f"--precision {precision}")
    # One is what `bench` takes by itself.
    if threads not in (None, 1):
        words.append(f"--threads {threads}")
    return " ".join(words)
