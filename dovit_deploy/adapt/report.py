"""What is said of an adapted network: how gates fit, which thresholds, and whether something simpler is as good."""

from __future__ import annotations

from typing import Literal

from pydantic import computed_field

from dovit_deploy.bundle.calibration import Interval, SequenceTest
from dovit_deploy.printing import plural
from dovit_deploy.record import Record

POINTS = 1.0
"""Of the pixels, in percent, that may get another class than the dense network gives them."""
FARTHEST = 3.0
"""Spreads of the fitting images' confidences by which those of other images may differ."""
FEW = 10
"""Images: gates fitted to fewer are surer of these than of others of their kind."""


class RuleBeside(Record):
    """The rule beside another way to spend MACs, on the same images."""

    thresholds: tuple[float, ...]
    flops_saved: float
    agreement: float
    """Share of the pixels that have the dense network's class."""
    miou: float | None
    """In percent; None without labels."""
    gain: float
    """What the rule has more: points of mIoU, without labels percent of the pixels that agree with dense."""
    gain_interval: Interval | None
    """Of 95 %; None for fewer than 8 blocks."""

    @property
    def beaten(self) -> bool:
        """The other way is as good, within the interval where there is one."""
        return (self.gain if self.gain_interval is None else self.gain_interval.low) <= 0


class WayEntry(Record):
    """One way to spend fewer MACs than the dense network."""

    name: str
    kind: Literal["dense", "rule", "random", "static", "smaller-input"]
    """dense: a network that was fine-tuned, with nothing stopped, beside the one that was given."""
    thresholds: tuple[float, ...] | None
    gmacs: float
    """Mean per image, in 10^9 MACs."""
    flops_saved: float
    agreement: float
    """Share of the pixels that have the class that the network as it was given, dense, gives them."""
    agreement_interval: Interval | None
    miou: float | None
    drop: float | None
    """Dense mIoU - mIoU, in points."""
    drop_interval: Interval | None
    rule: RuleBeside | None
    """The rule where it saves as much; None: it saves less at all thresholds, or this is the rule."""
    chosen: RuleBeside | None
    """The rule at the chosen thresholds, whatever it saves there; None: none are chosen, or this is the rule."""

    @property
    def as_good(self) -> bool:
        """Something simpler: it costs no more than the rule as chosen and is as good, or as good where both cost as
        much."""
        if self.kind not in ("static", "smaller-input") or self.flops_saved <= 0:
            return False
        if self.chosen is not None and self.flops_saved >= self.chosen.flops_saved:
            return self.chosen.beaten
        return self.rule is not None and self.rule.beaten


class TableEntry(Record):
    """Every way on the same images."""

    name: str
    images: int
    blocks: int
    """Groups of images that were drawn together for intervals."""
    labelled: bool
    dense_gmacs: float
    dense_miou: float | None
    ways: tuple[WayEntry, ...]
    left_out: str | None
    """Why there is nothing at smaller inputs."""
    confidence: float
    """Mean of the first gate's confidences over all tokens."""

    @property
    def rule(self) -> WayEntry | None:
        """The rule at the chosen thresholds; None where nothing stops."""
        return next((way for way in self.ways if way.kind == "rule"), None)

    @property
    def dense(self) -> WayEntry | None:
        """The fine-tuned network with nothing stopped; None where the network is as it was given."""
        return next((way for way in self.ways if way.kind == "dense"), None)

    @property
    def simpler(self) -> tuple[WayEntry, ...]:
        """What is as good as the rule."""
        return tuple(way for way in self.ways if way.as_good)


class GateEntry(Record):
    """How well a gate says on the images that it was fitted to what the network answers with nothing stopped."""

    layer: int
    agreement: float
    """Share of the tokens whose most likely class is that of the final answer."""
    confidence: float
    """Mean over the images' windows."""
    confidence_spread: float
    """Standard deviation over the images' windows."""


class DistilEntry(Record):
    """What `--minutes` did."""

    minutes: float
    clock: Literal["wall", "processor"]
    """How they are counted."""
    seed: int
    images: int
    """That it learnt from; of a network whose windows slide, windows."""
    steps: int
    seconds: float
    loss_first: float
    """Mean distance from the network as it was given, over the first tenth of the steps."""
    loss_last: float
    """Over the last tenth."""


class AdaptReport(Record):
    """What `dovit adapt --json` says."""

    images: str
    """IMAGES, as given."""
    total: int
    """How many there were to choose from."""
    taken: int
    failed: tuple[str, ...]
    """A line for each that could not be read."""
    fitted: int
    """Images that gates and lenses were fitted to."""
    gates: tuple[GateEntry, ...]
    thresholds: tuple[float, ...] | None
    """Per gate; None: nothing stops."""
    refusal: str
    """Why nothing stops; empty where something does."""
    doubts: tuple[str, ...]
    """What the images' confidences speak against."""
    tables: tuple[TableEntry, ...]
    """On held-out images, then on those with labels."""
    budget: str
    """What the thresholds keep to, as a sentence."""
    promise: SequenceTest | None = None
    """The test behind it, where it is a promise about other images."""
    distilled: DistilEntry | None = None
    """None: the network is as it was given."""
    dense_agreement: float | None = None
    """Share of the held-out images' pixels to which the fine-tuned network gives, with nothing stopped, the class that
    the network as it was given gives them; None where it is that network still, bit for bit."""
    dense_agreement_interval: Interval | None = None
    original: str | None = None
    """Bundle of the network as it was given, absolute path; None: it is not kept."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """What is saved at which price, or what is as good and simpler; by labels where there are some."""
        return verdict(self.tables[-1], self.refusal)


def domain_doubt(table: TableEntry, gates: tuple[GateEntry, ...], *, fitted: int) -> str | None:
    """What to say where the first gate is much surer, or much less sure, of these images than of the `fitted` ones
    that it was fitted to; None: it is not."""
    first = gates[0]
    if abs(table.confidence - first.confidence) <= FARTHEST * max(first.confidence_spread, 0.01):
        return None
    too_few = f", or {plural(fitted, 'image')} too few to fit to" if fitted < FEW else ""
    return (
        f"{table.name}: the first gate's mean confidence is {table.confidence:.2f} there, and {first.confidence:.2f} "
        f"on the images that it was fitted to; they seem to be of another kind{too_few}: the thresholds may be wrong "
        "there"
    )


def verdict(table: TableEntry, refusal: str) -> str:
    """The first line: what is saved at which price, or what is as good and simpler.

    Args:
        table: with labels, where there are any.
        refusal: why nothing stops; "" where something does.
    """
    if table.rule is None:
        good = [way for way in table.ways if way.flops_saved > 0 and way.agreement >= 1 - POINTS / 100]
        instead = f"; {good[-1].name} is simpler and good enough ({_said(good[-1], table)})" if good else ""
        return f"nothing stops: {refusal}{instead}"
    said, simpler = _said(table.rule, table), table.simpler
    if simpler:
        best = max(simpler, key=lambda way: (way.miou or 0.0, way.agreement))
        return (
            f"probably not worth it: {best.name} is as good{_within(best)} ({_said(best, table)}); "
            f"token passing: {said}"
        )
    for way in table.ways:
        if way.kind == "random" and way.rule is not None and way.rule.beaten:
            return f"{said}; as many tokens stopped at random are as good{_within(way)}"
    return f"{said}; nothing simpler is as good at equal MACs"


def _within(way: WayEntry) -> str:
    return "" if way.agreement_interval is None else " within the interval"


def _said(way: WayEntry, table: TableEntry) -> str:
    drop = "" if way.drop is None else f", mIoU drop {way.drop:z.2f}{_ends(way.drop_interval)}"
    given = "dense" if table.dense is None else "the network as it was given"
    return f"{way.flops_saved:z.1%} of the MACs saved, {1 - way.agreement:.2%} of the pixels differ from {given}{drop}"


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval.low:z.2f} to {interval.high:z.2f})"
