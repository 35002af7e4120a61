"""MODEL_CARD.md of road-small: every figure comes from the bundle, the note of its run and the results of `dovit eval`.

    dovit eval BUNDLE CAMVID --split val --controls --json benchmarks/results/road-small-val.json
    python models/road-small/make_card.py

Results are `benchmarks/results/road-small-NAME.json`: of `dovit eval --controls` and, of the drive that was left out,
only of `protocol/frozen.py read`, which says that everything was chosen before. A result that is not there is not
spoken of.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.parity import ParityReport
from dovit_deploy.documents import read_text
from dovit_deploy.errors import DovitError, InputError
from dovit_deploy.families.cost import cost_model
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.files import write_text
from dovit_deploy.record import Record
from dovit_deploy.runtime.run import short_thresholds
from dovit_deploy.runtime.settings import thresholds_from

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent.parent / "benchmarks" / "results"
PACKAGE, BUNDLE, RUN, CARD = "dovit_model_road_small", "road-small.dovit", "run.json", "MODEL_CARD.md"
UNSEEN = "train:0006R0"
"""The split that is looked at once."""
SPLITS = {"val": "val", UNSEEN: "0006R0"}
"""Splits that the card shows, and what it calls them."""
CONTROLS = {
    "random": "as many, drawn at random",
    "position": "as many, by position alone",
    "other": "as many, as in another image",
    "first_gate": "everything at the first gate",
    "oracle": "oracle gate, as many",
}

ABOUT_FIGURES = """\
## Figures

In the deployed bundle, ONNX Runtime, float32, at the default thresholds: `dovit eval road-small CAMVID --split val
--controls` and, of 0006R0, [the look after everything was frozen](../../docs/measuring.md#choosing-without-looking),
with [the controls](../../docs/measuring.md#controls). Intervals are over blocks of ten seconds of recording; a clip of
fewer than eight of them has none.
"""

ABOUT_PRECISIONS = """\
## Precisions

Against ONNX Runtime in float32, both at the default thresholds, on images of `val`, as the bundle's `parity.json`
states it. Ranges of 8 bits come from training drives without 0006R0.
{rounded}

| engine | precision | same class | drop, points of mIoU | confidences within |
|---|---|---|---|---|
"""


class TrainedRun(Record):
    """What the card says of the run that made the weights."""

    recipe: str
    """Its file in `recipes`."""
    seed: int
    steps: int
    minutes: float
    images: int
    init: str
    init_sha256: str


def facts_table(bundle: Bundle) -> str:
    """What the network is and costs."""
    manifest = bundle.manifest
    spec = manifest.spec
    assert isinstance(spec, VisionTransformerSpec)
    layers = ", ".join(str(gate.layer) for gate in spec.gates)
    cost, (height, width) = cost_model(spec).dense(), spec.size
    megabytes = {
        form: sum(file.bytes for name, file in manifest.files.items() if (".int8." in name) == form) / 1e6
        for form in (False, True)
    }
    thresholds = short_thresholds(thresholds_from(None, manifest))
    lens = ", through an affine map of its gate (a lens)" if spec.answer == "lens" else ""
    shape = f"width {spec.width}, {spec.depth} layers, {spec.heads} heads, {spec.patch}-pixel tokens"
    rows = {
        "architecture": f"DINOv2 ViT-S/14: {shape}; gates before layers {layers}; the decode head ({spec.head.kind}) "
        f"sees a stopped token as its gate did{lens}",
        "input": f"RGB, resized to {height}x{width} (height x width): {spec.grid[0]}x{spec.grid[1]} tokens; "
        "mean and standard deviation of ImageNet",
        "size": f"{parameters(bundle) / 1e6:.1f} M parameters, {megabytes[False]:.0f} MB with large weights in fp16; "
        f"{megabytes[True]:.0f} MB more for the forms in 8 bits",
        "cost": f"{cost.total / 1e9:.1f} GMAC dense, of which the transformer layers are {cost.layers / 1e9:.1f}",
        "classes": ", ".join(entry.name for entry in manifest.classes),
        "default thresholds": ", ".join(f"{value:g}" for value in thresholds if isinstance(value, float)),
        "licence": f"**non-commercial research only** (CC BY-NC 4.0; LICENSE, NOTICE): {manifest.provenance.license}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def parameters(bundle: Bundle) -> int:
    """Of the network in fp32."""
    with safe_open(bundle.path / "weights.safetensors", framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def results_in(folder: Path, bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What `dovit eval` found with this bundle, by the card's name of the split, in its order.

    Raises:
        InputError: a result is of other weights, of other thresholds, lacks the controls, or is of a look that was not
            taken by the protocol.
    """
    own = short_thresholds(thresholds_from(None, bundle.manifest))
    found = {}
    for path in sorted(folder.glob("road-small-*.json")):
        try:
            whole = json.loads(read_text(path))
            report = whole.get("eval", whole)
            if report["split"] not in SPLITS or (report["engine"], report["precision"]) != ("onnxruntime", "fp32"):
                continue
            if report["thresholds"] != own or report["controls"] is None:
                raise InputError(f"{path}: measured at thresholds {report['thresholds']}, or without the controls")
            if report["source_sha256"] != bundle.manifest.provenance.source_sha256:
                raise InputError(f"{path}: measured with other weights than those of {bundle.path}")
            if report["split"] == UNSEEN and "frozen" not in whole:
                raise InputError(
                    f"{path}: no look of benchmarks/protocol/frozen.py, so nothing says what was chosen when"
                )
            if SPLITS[report["split"]] in found:
                raise InputError(f"{path}: another result of {report['split']}; leave one")
            found[SPLITS[report["split"]]] = report | {key: whole.get(key) for key in ("tried", "looks_before")}
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: no result of `dovit eval --json` ({error!r})") from error
    return {name: found[name] for name in SPLITS.values() if name in found}


def figures(results: dict[str, dict[str, Any]]) -> str:
    """The section about mIoU and its controls."""
    first = next(iter(results.values()))
    columns = {name: columns_of(report) for name, report in results.items()}
    header = "".join(f" {name}: mIoU | boundary IoU | drop (95 %) | MACs saved |" for name in results)
    rows = (f"| {way} |" + "".join(cells[way] for cells in columns.values()) for way in next(iter(columns.values())))
    classes = (
        f"| {name} |" + "".join(class_cells(report, name) for report in results.values())
        for name in first["dense"]["iou"]
    )
    return "\n".join(
        [
            *(ABOUT_FIGURES, f"| |{header}", "|---|" + "---|---|---|---|" * len(results), *rows, ""),
            *(sentence(name, report) for name, report in results.items()),
            *("", "IoU of each class, dense and stopped:", ""),
            *("| |" + "".join(f" {name}: dense | stopped |" for name in results), "|---|" + "---|---|" * len(results)),
            *classes,
        ]
    )


def columns_of(report: dict[str, Any]) -> dict[str, str]:
    """The cells of every way of running, by what the card calls it."""
    controls = report["controls"]
    dense = report["dense"] | {"flops_saved": 0.0, "drop": None}
    rows = {"dense": dense, "**stopped by the gates**": report["dynamic"]}
    rows |= {shown: controls[name] for name, shown in CONTROLS.items()}
    rows |= {f"dense at {entry['size'][0]}x{entry['size'][1]}": entry for entry in controls["smaller_input"]}
    return {
        name: f" {row['miou']:.1f} | {row['boundary_iou']:.1f} | {points(row['drop'], row.get('drop_interval'))} "
        f"| {row['flops_saved']:.0%} |"
        for name, row in rows.items()
    }


def points(value: float | None, ends: Sequence[float] | None) -> str:
    """ "0.36 (0.08 to 0.71)"."""
    if value is None:
        return "-"
    return f"{value:.2f}" + ("" if ends is None else f" ({ends[0]:.2f} to {ends[1]:.2f})")


def class_cells(report: dict[str, Any], name: str) -> str:
    """Of one class."""
    values = (report[way]["iou"][name] for way in ("dense", "dynamic"))
    return "".join(" - |" if value is None else f" {value:.1f} |" for value in values)


def sentence(name: str, report: dict[str, Any]) -> str:
    """What the rule is worth on a split."""
    controls, dynamic = report["controls"], report["dynamic"]
    by_chance, by_position, by_other = (
        points(controls[key]["rule_gain"], controls[key]["rule_gain_interval"])
        for key in ("random", "position", "other")
    )
    saved, efficiency = dynamic["spread"]["flops_saved"], controls["gate_efficiency"]
    notes = [
        f"At the same counts on {name} the rule is worth {by_chance} points over chance, {by_position} over position "
        f"alone and {by_other} over another image's decisions; single images save "
        f"{saved['min']:.0%} to {saved['max']:.0%} of their MACs; worst class: {dynamic['worst_class']} "
        f"({dynamic['worst_class_drop']:.1f})."
    ]
    smaller = [
        f"{points(entry['rule_gain'], entry['rule_gain_interval'])} at {entry['size'][0]}x{entry['size'][1]} "
        f"({entry['flops_saved']:.0%} saved)"
        for entry in controls["smaller_input"]
    ]
    if smaller:
        notes.append(f"Over the same weights, dense and smaller: {', '.join(smaller)}.")
    if efficiency is not None:
        notes.append(f"Gate efficiency: {efficiency:.2f}.")
    if report["tried"] is not None:
        before = f"looks before the choice: {report['looks_before']}"
        notes.append(f"Recipes tried before this look, elsewhere: {report['tried']}; {before}.")
    return " ".join(notes)


def precisions(report: ParityReport) -> str:
    """The section about other engines and 8 bits."""
    rows = (
        f"| {one.engine} | {one.precision} | {one.agreement:.2%} | {'-' if one.drop is None else f'{one.drop:.2f}'} "
        f"| {max(one.confidence_error, default=0.0):.2g} |"
        for one in report.precisions
    )
    agree = (
        ""
        if report.compact is None
        else f"Rounding to fp16 keeps the class of {report.compact.agreement:.3%} of the pixels."
    )
    return ABOUT_PRECISIONS.format(rounded=agree) + "\n".join(rows)


def card(folder: Path, results: Path | None) -> str:
    """The card of the distribution in `folder`; None: nothing was measured with it yet.

    Raises:
        InputError, BundleError: there is no whole distribution, or a result of another one.
    """
    bundle = Bundle.open(folder / PACKAGE / BUNDLE)
    run = TrainedRun.model_validate_json(read_text(folder / RUN)).model_dump()
    parity = ParityReport.model_validate_json(read_text(bundle.path / "parity.json"))
    found = {} if results is None else results_in(results, bundle)
    text = read_text(HERE / "card.txt").format(
        **run | {"steps": f"{run['steps']:,}", "minutes": f"{run['minutes']:g}"},
        facts=facts_table(bundle),
        figures=figures(found) if found else "",
        precisions=precisions(parity) if parity.precisions else "",
    )
    # Without a section two blank lines are left.
    return re.sub("\n{3,}", "\n\n", text)


def write_card(folder: Path, results: Path | None) -> None:
    """Write it."""
    write_text(folder / CARD, card(folder, results))


def main(words: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE, help="of the distribution; default: beside this script")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with road-small-NAME.json")
    flags = parser.parse_args(words)
    try:
        write_card(flags.folder, flags.results)
    except DovitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(flags.folder / CARD)
    return 0


if __name__ == "__main__":
    sys.exit(main())
