"""What is compared with token passing, of which seed, and what is missing? Runs by their names -> contenders.

A rival is dense-trained, at a smaller input or shallower, as its network says. A run that has not ended yet is listed,
and all that needs it is left out of its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dovit_deploy.bundle.bundle import Bundle
from dovit_deploy.bundle.interface import FP32
from dovit_deploy.errors import InputError, UsageError
from dovit_deploy.families.vit.spec import VisionTransformerSpec
from dovit_deploy.runtime.latency_fit import run_every_size
from why_not.exports import RunExports
from why_not.ways import (
    Runtime,
    Way,
    dense_way,
    merging_name,
    merging_way,
    named,
    opened,
    passing_name,
    passing_way,
    timed,
)

OURS = "token passing"
FAMILIES = ("dense", OURS, "curve", "smaller", "dense-trained", "dense-trained smaller", "shallower", "merging")
"""In the order of a table's rows."""


@dataclass(frozen=True)
class Contender:
    """One network of one seed, and one way to run it."""

    seed: int
    family: str
    bundle: Path
    name: str
    """Of its row."""
    thresholds: str | None = None
    """Of token passing, as on the command line; None: the bundle's own."""
    merge: int = 0
    """Tokens merged in every layer."""

    @property
    def stops(self) -> bool:
        """Whether what it computes depends on the image and on its weights."""
        return self.family in (OURS, "curve")

    def computed_in(self, runtime: Runtime) -> Runtime:
        """Merging has no graphs in 8 bits."""
        return Runtime(runtime.engine, FP32) if self.merge else runtime

    def way(self, runtime: Runtime, folder: Path, *, compiled: bool = False) -> Way:
        """It, ready to run.

        Args:
            runtime: what it runs in, but for merging, which is in fp32.
            folder: an existing one, that outlives it, for graphs that are made here.
            compiled: an engine that compiles for each number of tokens does it now, and in no image's time.
        """
        if self.merge:
            return merging_way(Bundle.open(self.bundle), self.merge, folder, self.computed_in(runtime))
        if self.stops:
            session = opened(self.bundle, runtime)
            if compiled:
                run_every_size(session, _spec(self.bundle).tokens)
            return passing_way(timed(session), self.thresholds, self.family)
        return dense_way(self.bundle, self.family, self.name, runtime)


@dataclass(frozen=True)
class Asked:
    """Which runs are compared, and in which further ways."""

    ours: str
    rivals: Sequence[str]
    """NAME, or NAME@HxW: that run's network at another input than it was trained at."""
    seeds: Sequence[int]
    curve: Sequence[str]
    smaller: Sequence[str]
    merge: Sequence[int]


@dataclass(frozen=True)
class RivalContest:
    """All contenders of all seeds, and the runs that are not there."""

    contenders: tuple[Contender, ...]
    missing: tuple[str, ...]
    """NAME-seedN."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of which ours has ended."""
        return tuple(one.seed for one in self.contenders if one.family == OURS)


def contest(exports: RunExports, asked: Asked) -> RivalContest:
    """All that can be compared, exported.

    Raises:
        InputError: not one run of ours has ended.
        UsageError: a rival is nothing that is compared, or there are two of a kind.
        DovitError: whatever an export refuses.
    """
    runs = dict.fromkeys((asked.ours, *(one.partition("@")[0] for one in asked.rivals)))
    missing = [f"{run}-seed{seed}" for run in runs for seed in asked.seeds if not exports.has_ended(run, seed)]
    seeds = [seed for seed in asked.seeds if exports.has_ended(asked.ours, seed)]
    if not seeds:
        checkpoint = exports.checkpoint(asked.ours, asked.seeds[0])
        raise InputError(f"{checkpoint}: there is no such run, or it has not ended, nor has any other seed's of ours")
    found = [one for seed in seeds for one in _of_seed(exports, asked, seed)]
    return RivalContest(tuple(found), tuple(missing))


def _of_seed(exports: RunExports, asked: Asked, seed: int) -> list[Contender]:
    """Those of one seed whose runs have ended."""
    ours = exports.bundle(asked.ours, seed, ours=True)
    manifest = Bundle.open(ours).manifest
    found = [
        Contender(seed, "dense", ours, "dense"),
        Contender(seed, OURS, ours, passing_name(manifest, None)),
        *(Contender(seed, "curve", ours, passing_name(manifest, text), text) for text in asked.curve),
    ]
    for size in asked.smaller:
        path = exports.bundle(asked.ours, seed, size=size)
        found.append(Contender(seed, "smaller", path, named("same weights, {size}", _spec(path))))
    rivals = [_rival(exports, one, seed, _spec(ours)) for one in asked.rivals if _ended(exports, one, seed)]
    trained = [one for one in rivals if one.family == "dense-trained"]
    # A run that is missing may be that one.
    if len(trained) > 1 or (not trained and len(rivals) == len(asked.rivals)):
        given = ", ".join(one.bundle.stem for one in trained) or "none"
        raise UsageError(
            f"--rivals: one network of the size and depth of ours is needed, trained dense; given: {given}"
        )
    # Merging is made for networks that were trained dense.
    merged = [
        Contender(seed, "merging", one.bundle, merging_name(count, FP32), merge=count)
        for one in trained
        for count in asked.merge
    ]
    return sorted([*found, *rivals, *merged], key=lambda one: FAMILIES.index(one.family))


def _ended(exports: RunExports, rival: str, seed: int) -> bool:
    return exports.has_ended(rival.partition("@")[0], seed)


def _rival(exports: RunExports, rival: str, seed: int, ours: VisionTransformerSpec) -> Contender:
    """One static network, under what it is.

    Raises:
        UsageError: it is deeper than ours, or differs from it in two ways.
    """
    run, at, size = rival.partition("@")
    path = exports.bundle(run, seed, size=size or None)
    other = _spec(path)
    shallower, smaller = other.depth < ours.depth, other.size != ours.size
    if other.depth > ours.depth or other.tokens > ours.tokens or (shallower and smaller):
        raise UsageError(f"{rival}: {other.depth} layers at {other.size}; ours has {ours.depth} at {ours.size}")
    if shallower:
        return Contender(seed, "shallower", path, named("dense-trained, {depth} layers", other))
    if not smaller:
        return Contender(seed, "dense-trained", path, "dense-trained")
    name = named("dense-trained, {size}", other)
    if at:
        height, width = exports.trained_size(run, seed)
        name += f" (trained at {height}x{width})"
    return Contender(seed, "dense-trained smaller", path, name)


def _spec(bundle: Path) -> VisionTransformerSpec:
    spec = Bundle.open(bundle).manifest.spec
    if not isinstance(spec, VisionTransformerSpec):
        raise UsageError(f"{bundle.name}: a {spec.family}; vision transformers are compared")
    return spec
