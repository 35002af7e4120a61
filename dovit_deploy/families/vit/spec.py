"""VisionTransformerSpec: the architecture as data, enough to build it, count its cost and check its weights."""

from __future__ import annotations

import itertools
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from dovit_deploy.bounds import (
    MOST_STAGES,
    Channels,
    ClassCount,
    Epsilon,
    ExtraTokens,
    Heads,
    Layers,
    Name,
    PatchSide,
    Share,
)
from dovit_deploy.families.parts import (
    ConvStem,
    FcnHead,
    GateSpec,
    Head,
    LinearHead,
    MlpKind,
    Padding,
    PatchStem,
    PositionMode,
    QueryHead,
    SetrHead,
    Stem,
    backbone_text,
    check_heads,
    head_text,
    logits_grid,
)
from dovit_deploy.families.spec import Carried, Grid, ModelSpec, Size

ADDED = frozenset({"answer", "context", "mlp", "padding", "rotary", "tap_answer", "tap_norm", "taps"})
"""Fields that came after version 0.3: written only where they are not at their default, so that what older versions
wrote stays the same byte for byte, and they read what does not use these options."""


Answer = Literal["feature", "gate", "lens"]
Context = Literal["none", "pooled"]


class VisionTransformerSpec(ModelSpec):
    """A (dynamic-token) vision transformer for segmentation at one input size.

    DoViT is this with gates; Segmenter and SETR are this without.
    """

    family: Name
    size: Size
    """Height and width of `pixels`, in pixels; padded to whole patches inside the network."""
    patch: PatchSide = 16
    stem: Stem = PatchStem()
    width: Channels
    depth: Layers
    heads: Heads
    hidden: Channels
    """Width of the MLP's inner layer."""
    extra_tokens: ExtraTokens = 1
    """Class token, then a distillation token or registers; 0, never with gates: no class token, as
    mmsegmentation's `with_cls_token=False`. Registers have positions of zeros."""
    norm_eps: Epsilon = 1e-6
    final_norm: bool = True
    classes: ClassCount
    gates: tuple[GateSpec, ...] = Field(default=(), max_length=MOST_STAGES - 1)
    aggregate_rate: Share = 0.1
    """The class token takes in the stopped tokens' mean when more than this share of all tokens has stopped."""
    position_mode: PositionMode = "bicubic"
    rotary: bool = False
    """Queries and keys are turned by where their patch lies, instead of position embeddings added (DINOv3)."""
    head: Head
    answer: Answer = "feature"
    """What the decode head sees of a stopped token in place of the last layer's. feature: the value that it stopped
    with, as published; lens: an affine map of that, one for each gate, to what the last layer would have made of it.
    gate: nothing, and the logits of the gate are its answer; for heads that look at one token at a time."""
    context: Context = "none"
    """What layers behind a gate see of tokens that have stopped. none: nothing, as published; pooled: for each class
    one more key and value, of the mean of those that their gates took for it."""
    taps: tuple[Layers, ...] = Field(default=(), max_length=MOST_STAGES)
    """The decode head also sees every token as it is after so many layers: these channels first, then those of the last
    layer."""
    tap_answer: Literal["feature", "lens"] = "feature"
    """What a tap sees of a token that stopped before it: the value that it stopped with, or a lens of the gate to what
    the tapped layer would have made of it."""
    tap_norm: bool = True
    """The last norm is over what is tapped, too."""
    mlp: MlpKind = "gelu"
    padding: Padding = "end"

    @model_validator(mode="after")
    def _consistent(self) -> VisionTransformerSpec:
        check_heads(self.width, self.heads)
        # Pairs of channels for rows, and as many for columns.
        if self.rotary and self.width // self.heads % 4:
            raise ValueError(f"rotary positions need heads of a multiple of 4 channels, not {self.width // self.heads}")
        # A gate sums what stopped up in the class token.
        if self.gates and not self.extra_tokens:
            raise ValueError("gates need a class token")
        layers = [gate.layer for gate in self.gates]
        # A gate behind the last layer would have nothing to save, nor one where all tokens run again.
        if layers != sorted(set(layers)) or any(layer >= self.rejoin for layer in layers):
            where = "the depth" if self.rejoin == self.depth else "the layer that queries join,"
            raise ValueError(f"gates {layers} must rise and stay below {where} {self.rejoin}")
        if self.rejoin < 0:
            raise ValueError(f"queries join the last {self.depth - self.rejoin} layers of {self.depth}")
        if self.rejoin < self.depth and (self.rotary or self.taps):
            raise ValueError("queries join layers without rotary positions and without taps")
        if list(self.taps) != sorted(set(self.taps)) or any(layer >= self.depth for layer in self.taps):
            raise ValueError(f"taps {list(self.taps)} must rise and stay below the depth {self.depth}")
        self._check_answers()
        # Every convolution halves the grid once, and the projection once more.
        if isinstance(self.stem, ConvStem) and 2 ** (len(self.stem.widths) + 1) != self.patch:
            raise ValueError(f"a stem of {len(self.stem.widths)} widths does not make patches of {self.patch}")
        return self

    def _check_answers(self) -> None:
        alone = isinstance(self.head, LinearHead | FcnHead)
        if self.answer == "gate" and (not alone or any(isinstance(gate.head, SetrHead) for gate in self.gates)):
            raise ValueError("gates answer where they and the decode head look at one token at a time")
        if self.tap_answer == "lens" and self.answer != "lens":
            raise ValueError(f"taps have lenses where the last layer has, and the answer is '{self.answer}'")
        if self.context == "pooled" and any(isinstance(gate.head, SetrHead) for gate in self.gates):
            raise ValueError("what stops is pooled by class where gates look at one token at a time")

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As written without this, but for fields of `ADDED` at their default."""
        used = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        return {name: value for name, value in written(self).items() if name not in ADDED or name in used}

    @property
    def task(self) -> Literal["segmentation"]:
        return "segmentation"

    @property
    def pads_before(self) -> tuple[int, int]:
        if self.padding == "end":
            return super().pads_before
        rows, columns = (-side % self.patch // 2 for side in self.size)
        return rows, columns

    @property
    def rejoin(self) -> int:
        """The layer from which on all tokens run, stopped ones too, with the head's queries; else the depth."""
        return self.depth - (self.head.joined if isinstance(self.head, QueryHead) else 0)

    @property
    def stage_layers(self) -> tuple[tuple[int, int], ...]:
        """First and one-past-last layer of each stage; a stage ends where a gate stands.

        Where queries join, the last one goes on with all tokens.
        """
        cuts = [0, *(gate.layer for gate in self.gates), self.rejoin]
        return tuple(itertools.pairwise(cuts))

    @property
    def counts(self) -> tuple[int, ...]:
        return (self.tokens,) * len(self.stage_layers)

    @property
    def pooled_keys(self) -> int:
        """How many keys layers behind a gate have beside those of what runs."""
        return self.classes if self.gates and self.context == "pooled" else 0

    @property
    def has_lenses(self) -> bool:
        """Each gate has a lens to the last layer's space: for the decode head, for pooled keys, or for both."""
        return self.answer == "lens" or self.pooled_keys > 0

    @property
    def head_width(self) -> int:
        """Channels of a token as the decode head sees it."""
        return (len(self.taps) + 1) * self.width

    @property
    def carried(self) -> tuple[Carried, ...]:
        gates, found = len(self.gates), list[Carried]()
        if gates and self.answer != "feature":
            size = (self.patches, self.classes) if self.answer == "gate" else (self.tokens, self.width)
            # Every gate writes the answers of what ran to it; whatever stopped before keeps the one that it has.
            found.append(Carried("answers", size, tuple(range(gates)), tuple(range(1, gates + 1))))
        if self.pooled_keys:
            found += self._carried_context()
        return (*found, *(tap for tap in map(self._carried_tap, self.taps) if tap.given_by))

    def _carried_context(self) -> list[Carried]:
        """What each gate took each patch that ran to it for, and, behind the second, the sums of what stopped before.

        Which of the patches stop is known to the next stage alone, from its `index`.
        """
        gates = len(self.gates)
        votes = Carried("votes", (self.patches, self.classes), tuple(range(gates)), tuple(range(1, gates + 1)))
        sums = Carried("context", (self.classes, self.width + 1), tuple(range(1, gates)), tuple(range(2, gates + 1)))
        return [votes, sums] if gates > 1 else [votes]

    def _carried_tap(self, tap: int) -> Carried:
        gates, stage = len(self.gates), next(k for k, (_, last) in enumerate(self.stage_layers) if tap <= last)
        # The last stage reads its own. Gates before a tap write what it will see, if that is of their making.
        first = 0 if self.tap_answer == "lens" else stage
        given = tuple(number for number in range(first, stage + 1) if number < gates)
        taken = tuple(sorted({*range(first + 1, stage + 1), gates}))
        return Carried(f"tap{tap}", (self.tokens, self.width), given, taken)

    def lensed_taps(self, gate: GateSpec) -> tuple[int, ...]:
        """The taps that see a lens of `gate` of what stops there."""
        return tuple(tap for tap in self.taps if tap > gate.layer) if self.tap_answer == "lens" else ()

    @property
    def logits_grid(self) -> Grid:
        return logits_grid(self.head, self.grid)

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        backbone = backbone_text(width=self.width, depth=self.depth, heads=self.heads, stem=self.stem.kind)
        backbone += ", SwiGLU" if self.mlp == "swiglu" else ""
        if self.rotary:
            backbone += ", rotary positions"
        if self.pooled_keys:
            backbone += f", behind gates {self.pooled_keys} keys of what has stopped"
        head = head_text(self.head)
        if self.taps:
            head += f", on the tokens after {', '.join(map(str, self.taps))} and all layers"
        if self.gates and self.answer == "lens":
            head += ", a lens at each gate" + (" for every layer behind it" if self.tap_answer == "lens" else "")
        if self.gates and self.answer == "gate":
            head += ", gates answer for what stops"
        return ("backbone", backbone), ("decode head", head)
