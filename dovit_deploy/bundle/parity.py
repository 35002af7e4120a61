"""How far are a bundle's graphs from the reference? `ParityReport`, the contents of `parity.json`."""

from __future__ import annotations

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from dovit_deploy.bundle.interface import KEPT, LOGITS, is_crossing, stage_name
from dovit_deploy.record import Record

MAX_DROP = 1.0
"""Points that a precision may lose where nobody has allowed another number."""


class GateParity(Record):
    """One gate: how far the confidences are apart, and which decisions differ."""

    confidence_error: float
    """Largest |difference| over all evaluated tokens, the reference's decisions replayed."""
    explained: int
    """Decisions that differ where the reference's confidence is closer to its limit than that error."""
    unexplained: int
    """Decisions that differ anywhere else: failures."""


class FloatParity(Record):
    """One tensor: the largest difference, and what is allowed, 1e-4 * max(1, absmax of the reference) in fp32."""

    name: str
    error: float
    allowed: float


class RunParity(Record):
    """One image at one setting of the thresholds."""

    image: str
    thresholds: tuple[float, ...]
    """The first class's threshold of each gate."""
    kept: tuple[int, ...]
    """Tokens that entered each stage in the reference."""
    gates: tuple[GateParity, ...]
    floats: tuple[FloatParity, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, in words; empty when the engines agree."""
        decisions = [
            f"gate {number}: {gate.unexplained} decisions differ without an explanation"
            for number, gate in enumerate(self.gates)
            if gate.unexplained
        ]
        # Written so that NaN fails.
        floats = [
            f"{entry.name}: differs by {entry.error:.3g}, allowed {entry.allowed:.3g}"
            for entry in self.floats
            if not entry.error <= entry.allowed
        ]
        return (*decisions, *floats)


class FormParity(Record):
    """One form of the graphs (portable, fast) in one engine."""

    form: str
    engine: str
    runs: tuple[RunParity, ...]


class PrecisionParity(Record):
    """One engine at one precision below fp32: what its answers lose against fp32, thresholds and all."""

    engine: str
    precision: str
    agreement: float
    """Share, 0..1, of the pixels whose class is the one that fp32 finds: both dynamic, at the bundle's thresholds."""
    drop: float | None
    """mIoU of fp32 minus its own, in points; None: the images had no labels, and `agreement` alone was measured."""
    confidence_error: tuple[float, ...]
    """Of each gate, the largest |difference| of a token's confidence, the decisions of fp32 replayed."""
    images: int
    """On how many images it was measured."""

    @property
    def lost(self) -> float:
        """Points lost: of mIoU with labels, else of pixels that find another class."""
        return 100 * (1 - self.agreement) if self.drop is None else self.drop


class CompactWeights(Record):
    """What it cost to round large weights to float16 before the export, against the weights that were given."""

    agreement: float
    """Share, 0..1, of the pixels that keep their class, nothing stopped."""
    images: int
    """On how many images it was measured."""
    rounded: int
    """How many weights are stored in float16."""

    @property
    def text(self) -> str:
        """What a user reads."""
        return f"weights in fp16: {self.agreement:.3%} of the pixels agree"


class ParityReport(Record):
    """The contents of `parity.json`."""

    reference: str
    precision: str
    forms: tuple[FormParity, ...]
    versions: dict[str, str]
    precisions: tuple[PrecisionParity, ...] = ()
    """What other precisions lose, where they were measured at export."""
    max_drop: float = Field(default=MAX_DROP, ge=0, le=100)
    """Points that a precision may lose, as `--max-drop` of the export allowed; `--engine auto` keeps to it."""
    compact: CompactWeights | None = None
    """Of an export with `--compact`."""

    @model_serializer(mode="wrap")
    def _without_compact(self, whole: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Left out where there is none: other exports write what they did before there was any."""
        fields: dict[str, object] = whole(self)
        return {name: value for name, value in fields.items() if name != "compact" or value is not None}

    @property
    def failures(self) -> tuple[str, ...]:
        """Every failure with its form and image."""
        return tuple(
            f"{form.form} ({form.engine}), {run.image}: {failure}"
            for form in self.forms
            for run in form.runs
            for failure in run.failures
        )

    @property
    def answers_error(self) -> float | None:
        """The largest difference of an answer (logits, feature maps) of the staged graphs; None without runs."""
        entries = (entry for form in self.forms for run in form.runs for entry in run.floats)
        return max((entry.error for entry in entries if _is_answer(entry.name)), default=None)

    @property
    def proves_something(self) -> bool:
        """Some run keeps between 10 and 90 % of the tokens at some gate; without gates always true."""
        # Where all tokens run on, or none, a wrong decision or a row in the wrong position would not show.
        for form in self.forms:
            shares = [count / run.kept[0] for run in form.runs if run.thresholds for count in run.kept[1:]]
            if shares and not any(0.1 <= share <= 0.9 for share in shares):
                return False
        return True


def _is_answer(name: str) -> bool:
    """Of models with gates the last stage's logits, of others what their one stage gives beside counts of tokens."""
    first = f"{stage_name(0)} "
    given = name.removeprefix(first)
    return name == LOGITS or (given != name and given != KEPT and not is_crossing(given))
