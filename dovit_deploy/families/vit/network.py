"""The vision transformer: embed, gates, stages, decode. What is read here is what is exported.

A model with gates (DoViT) is cut at each of them, where the number of running tokens is unknown: select -> blocks ->
restore. What crosses a cut is every token, the gate's order and how much of it runs, and what `spec.carried` lists.
Without gates (Segmenter, SETR) it is one stage. Every stage looks at one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from dovit_deploy.families.heads import (
    MaskQueries,
    SetrUpHead,
    TokenLogitsHead,
    decode_head_from_spec,
    grid_from_tokens,
    token_head_from_spec,
)
from dovit_deploy.families.layers import Attend, Block, PatchTransformer, positions_at_size
from dovit_deploy.families.parts import GateSpec, SetrHead
from dovit_deploy.families.registry import Family
from dovit_deploy.families.rotary import COSINES, SINES
from dovit_deploy.families.stages import ImageOutput, whole_stages
from dovit_deploy.families.tokens import aggregate, aggregate_limit, partition, put_back, scatter_from, take
from dovit_deploy.families.vit.context import Beside, ContextMaps, keys_from_sums, members, with_stopped
from dovit_deploy.families.vit.spec import VisionTransformerSpec


class VisionTransformer(PatchTransformer):
    """The parameters of every supported ViT; the stages below and `train.masked` say in which order the parts run.

    Args:
        spec: the architecture.
        trainable: keep batch norms apart (training); otherwise they are folded into their projections.
    """

    spec: VisionTransformerSpec

    def __init__(self, spec: VisionTransformerSpec, *, trainable: bool = False) -> None:
        super().__init__(
            spec,
            final_norm=spec.final_norm,
            trainable=trainable,
            mlp=spec.mlp,
            padding=spec.padding,
            rotary=spec.rotary,
        )
        self.gates = nn.ModuleList(gate_from_spec(gate, spec, trainable=trainable) for gate in spec.gates)
        self.lenses = nn.ModuleList(Lens(spec) for _ in spec.gates if spec.has_lenses)
        self.tap_lenses = nn.ModuleList(
            nn.ModuleDict({str(tap): Lens(spec) for tap in spec.lensed_taps(gate)}) for gate in spec.gates
        )
        pooling = range(spec.gates[0].layer, spec.rejoin) if spec.pooled_keys else range(0)
        self.context_maps = ContextMaps(pooling, spec.width)
        self.head = decode_head_from_spec(spec.head, spec.head_width, spec.classes, trainable=trainable)

    def lenses_of_taps(self, gate: int) -> dict[int, nn.Module]:
        """The lenses of gate `gate` for taps behind it, by tap."""
        return {int(tap): lens for tap, lens in cast("nn.ModuleDict", self.tap_lenses[gate]).items()}

    def run_layers(
        self, tokens: Tensor, layers: tuple[int, int], attend: Attend | Mapping[int, Attend]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """`tokens` (n, C) after `layers`, first and one past the last, and as they were at each tap.

        `attend` is the attention of all these layers, or of each.
        """
        tapped = {}
        for layer in range(*layers):
            tokens = self.blocks[layer](tokens, attend[layer] if isinstance(attend, Mapping) else attend)
            if layer + 1 in self.spec.taps:
                tapped[layer + 1] = tokens
        return tokens, tapped

    def decode(self, tokens: Tensor, tapped: Sequence[Tensor] = ()) -> Tensor:
        """(E + N, C), every token at its last value, and all that was `tapped` before -> logits (1, K, h, w)."""
        if isinstance(self.head, MaskQueries):
            return self.answer(self.head, tokens)
        return self.head(self.features(tokens, tapped)[self.spec.extra_tokens :], self.spec.grid)  # type: ignore[no-any-return]

    def answer(self, head: MaskQueries, tokens: Tensor) -> Tensor:
        """`tokens` (E + N, C) as they are where the queries join -> logits (1, K, h', w')."""
        count, patches = len(head.queries), len(head.queries) + self.spec.extra_tokens
        joined = torch.cat([head.queries, tokens])
        for block in self.blocks[self.spec.rejoin :]:
            joined = block(joined)
        joined = self.norm(joined)
        return head(joined[:count], joined[patches:], self.spec.grid)  # type: ignore[no-any-return]

    def features(self, tokens: Tensor, tapped: Sequence[Tensor]) -> Tensor:
        """(..., E + N, C) each -> (..., E + N, head width), as the head sees them; norms cover stopped tokens too."""
        before = [self.norm(one) for one in tapped] if self.spec.tap_norm else tapped
        last: Tensor = self.norm(tokens)
        return torch.cat([*before, last], -1) if tapped else last

    def one_image(self, pixels: Tensor, *, dense: bool) -> ImageOutput:
        """Every token through every block, whether or not there are gates: `logits`."""
        del dense
        tokens, tapped = self.run_layers(self.embed(pixels), (0, self.spec.rejoin), self.attend_at())
        return ImageOutput((self.decode(tokens, [*tapped.values()]),))


class Lens(nn.Module):
    """What a later layer would have made of tokens that stop at one gate: (..., C) -> (..., C), before the last norm.

    What the decode head reads is then of one kind, whichever layer it comes from.
    """

    def __init__(self, spec: VisionTransformerSpec) -> None:
        super().__init__()
        # Weights of its own would be a second affine map in front of the linear layer's.
        self.norm = nn.LayerNorm(spec.width, eps=spec.norm_eps, elementwise_affine=False)
        self.linear = nn.Linear(spec.width, spec.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.norm(tokens))  # type: ignore[no-any-return]


class Decision(NamedTuple):
    """What leaves a gate; the order of fields is the order of a stage's outputs."""

    order: Tensor
    """(E + N,) int64: extra tokens, then running tokens in raster order, then the rest."""
    count: Tensor  # type: ignore[assignment]  # hides `tuple.count`, and is called as the graphs' output is
    """() int64: how many of `order` run on, extra tokens included."""
    confidence: Tensor
    """(N,) float32, NaN where the head was not evaluated."""
    label: Tensor
    """(N,) int64, the most likely class, -1 where the head was not evaluated."""


def stops(confidence: Tensor, threshold: Tensor, floor: Tensor) -> Tensor:
    """Boolean: the token is certain enough, or hopeless (`diff_conf` of the released code).

    Both comparisons are strict: at a threshold of 1 nothing is certain enough, and a floor of 0 is off.
    """
    return (confidence > threshold) | (confidence < floor)


class TokenGate(nn.Module):
    """A gate whose head looks at one token at a time: it is evaluated on running tokens only, which is exact.

    A token stops when its confidence, the probability of its most likely class, is above the threshold of that class.
    It never runs again.
    """

    def __init__(self, gate: GateSpec, spec: VisionTransformerSpec, *, trainable: bool) -> None:
        super().__init__()
        self.extra, self.total = spec.extra_tokens, spec.tokens
        if isinstance(gate.head, SetrHead):
            raise TypeError("an up-sampling head needs a GridGate")
        self.head = token_head_from_spec(gate.head, spec.width, spec.classes, trainable=trainable)

    def forward(self, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        return self.decide(self.look(tokens, index), index, thresholds, floor)

    def look(self, tokens: Tensor, index: Tensor) -> Tensor:
        """Logits (n, K) of the patches among `index` (E + n,)."""
        # Extra tokens come first and are never judged.
        return self.head(take(tokens, index[self.extra :]))  # type: ignore[no-any-return]

    def votes(self, logits: Tensor, index: Tensor) -> Tensor:
        """(N, K): what the `logits` of `look` make each patch among `index` (E + n,) out to be; zeros of the others."""
        nothing = torch.zeros(self.total - self.extra, logits.shape[1], device=logits.device)
        return put_back(nothing, index[self.extra :] - self.extra, logits.softmax(1))

    def decide(self, logits: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        """What follows from the `logits` of `look`."""
        running, probabilities = index[self.extra :], logits.softmax(1)
        # TopK rather than ReduceMax: ONNX Runtime gives the maximum over an empty set of tokens a wrong shape.
        confidence, label = (values[:, 0] for values in torch.topk(probabilities, 1, dim=1))
        # Each token has the threshold of the class that it would stop as.
        stop = stops(confidence, thresholds.index_select(0, label), floor)
        order, count = partition(kept_mask(index, stop, self.extra, self.total))
        everywhere = self.total - self.extra
        return Decision(
            order,
            count,
            scatter_from(running - self.extra, confidence, everywhere, float("nan")),
            scatter_from(running - self.extra, label, everywhere, -1),
        )


class GridGate(nn.Module):
    """A gate whose head up-samples and so mixes neighbours: it is evaluated on the full grid.

    The confidence is pooled from the *maximum* probability of each fine position, not from the logits.
    """

    def __init__(self, gate: GateSpec, spec: VisionTransformerSpec, *, trainable: bool) -> None:
        super().__init__()
        if not isinstance(gate.head, SetrHead):
            raise TypeError("a per-token head needs a TokenGate")
        self.extra, self.total, self.scale = spec.extra_tokens, spec.tokens, gate.head.scale
        self.grid = spec.grid
        self.head = SetrUpHead(gate.head, spec.width, spec.classes, trainable=trainable)

    def forward(self, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor) -> Decision:
        probabilities = self.head(tokens[self.extra :], self.grid).softmax(1)
        # Maximum first, then the mean: a token on an edge between two sure regions is sure.
        finest = torch.topk(probabilities, 1, dim=1)[0]
        confidence = functional.avg_pool2d(finest, self.scale, self.scale).reshape(-1)
        pooled = functional.avg_pool2d(probabilities, self.scale, self.scale)
        label = torch.topk(pooled, 1, dim=1)[1].reshape(-1)
        # One threshold for all classes: the engine refuses others for this kind of gate.
        stop = stops(confidence, thresholds[:1], floor).index_select(0, index[self.extra :] - self.extra)
        order, count = partition(kept_mask(index, stop, self.extra, self.total))
        return Decision(order, count, confidence, label)


def kept_mask(index: Tensor, stop: Tensor, extra: int, total: int) -> Tensor:
    """(total,) int64: 1 for extra tokens and for running tokens that do not stop.

    Args:
        index: (E + n,) int64, what ran.
        stop: (n,) bool, for the running patches in the order of `index`.
    """
    # Integers and not booleans: the order is a cumulative sum of this mask.
    ones = torch.ones(extra, dtype=torch.int64, device=stop.device)
    keep = torch.cat([ones, (~stop).to(torch.int64)])
    return torch.zeros(total, dtype=torch.int64, device=stop.device).index_copy(0, index, keep)


def gate_from_spec(gate: GateSpec, spec: VisionTransformerSpec, *, trainable: bool) -> nn.Module:
    """The gate that `gate` describes."""
    kind = GridGate if isinstance(gate.head, SetrHead) else TokenGate
    return kind(gate, spec, trainable=trainable)


class _Stage(nn.Module):
    """What all stages share: what they take from others beside the tokens, and what they give them."""

    def __init__(self, model: VisionTransformer, number: int) -> None:
        super().__init__()
        self.model, self.number = model, number
        self.takes = [one.name for one in model.spec.carried if number in one.taken_by]
        self.gives = [one.name for one in model.spec.carried if number in one.given_by]

    def gated(
        self, tokens: Tensor, running: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor
    ) -> tuple[Decision, dict[str, Tensor]]:
        """What this stage's gate makes of rows `index` (E + n,) of `tokens` (E + N, C), which are `running` (E + n, C).

        Returns:
            its decision, and by name what is carried of them in case that they stop here.
        """
        model, answers = self.model, dict[str, Tensor]()
        gate = model.gates[self.number]
        if model.spec.answer == "lens":
            answers["answers"] = model.lenses[self.number](running)
        answers |= {f"tap{tap}": lens(running) for tap, lens in model.lenses_of_taps(self.number).items()}
        if model.spec.answer != "gate" and not model.spec.pooled_keys:
            return gate(tokens, index, thresholds, floor), answers
        judge = cast("TokenGate", gate)
        logits = judge.look(tokens, index)
        if model.spec.answer == "gate":
            answers["answers"] = logits
        if model.spec.pooled_keys:
            answers["votes"] = judge.votes(logits, index)
        return judge.decide(logits, index, thresholds, floor), answers


class FirstStage(_Stage):
    """Pixels to the first gate: all tokens run.

    `pixels` (1, 3, H, W), `thresholds` (K,), `floor` () -> `tokens` (E + N, C), a `Decision` and what is carried on:
    what the decode head is to see of each token if it stops here, and what it taps before this gate.
    """

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__(model, 0)

    def forward(self, pixels: Tensor, thresholds: Tensor, floor: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        tokens, tapped = model.run_layers(model.embed(pixels), model.spec.stage_layers[0], model.attend_at())
        # Before the first gate nothing has stopped.
        everything = torch.arange(model.spec.tokens, device=tokens.device)
        decision, given = self.gated(tokens, tokens, everything, thresholds, floor)
        given |= {f"tap{tap}": value for tap, value in tapped.items()}
        return (tokens, *decision, *(given[name] for name in self.gives))


class _LaterStage(_Stage):
    """What the stages after a gate share: run the kept tokens, then put them back at their positions."""

    def __init__(self, model: VisionTransformer, number: int) -> None:
        super().__init__(model, number)
        self.limit = aggregate_limit(model.spec.aggregate_rate, model.spec.tokens)

    def advance(self, tokens: Tensor, index: Tensor) -> Tensor:
        """`tokens` (E + N, C) after this stage's layers ran on rows `index` (kept,)."""
        return put_back(tokens, index, self.run(tokens, index)[0])

    def pooled(self, tokens: Tensor, index: Tensor, taken: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums of what has stopped before this stage, by name; empty: no layer sees them.

        Of the patches that ran to the gate before, those that are not among `index` (kept,) stopped there.
        """
        if not self.model.spec.pooled_keys:
            return {}
        lens, extra = cast("Lens", self.model.lenses[self.number - 1]), self.model.spec.extra_tokens
        chosen = members(taken["votes"], self.patches(index))
        return {"context": with_stopped(lens, tokens[extra:], chosen, taken.get("context"))}

    def run(self, tokens: Tensor, index: Tensor, context: Tensor | None = None) -> tuple[Tensor, dict[int, Tensor]]:
        """What this stage's layers make of rows `index` (kept,) of `tokens` (E + N, C): (kept, C), also at each tap.

        `context` are the sums of what has stopped, where layers see them.
        """
        # The aggregate enters the sequence, so that the running tokens attend to what has stopped.
        class_token = aggregate(tokens, index, self.limit)
        running = torch.cat([class_token, take(tokens, index[1:])])
        model, layers = self.model, self.model.spec.stage_layers[self.number]
        if context is None:
            return model.run_layers(running, layers, model.attend_at(index))
        beside = Beside.of(model.context_maps, keys_from_sums(context, model.spec.patches), index)
        blocks = {layer: cast("Block", model.blocks[layer]) for layer in range(*layers)}
        attend = {layer: model.attend_at(index, beside.attend(layer, block)) for layer, block in blocks.items()}
        return model.run_layers(running, layers, attend)

    def renewed(self, name: str, value: Tensor, before: Tensor, index: Tensor) -> Tensor:
        """What is carried as `name`, `before`, with the rows of what ran written anew: `value`, of `index` (kept,)."""
        if name == "votes":
            # Whoever asks for them wants to know what ran to the last gate alone.
            return value
        if name == "answers" and self.model.spec.answer == "gate":
            return put_back(before, self.patches(index), value)
        return put_back(before, index, value)

    def patches(self, index: Tensor) -> Tensor:
        """Which patches run, in raster order, of `index` (kept,)."""
        extra = self.model.spec.extra_tokens
        return index[extra:] - extra

    def at_taps(
        self, tapped: dict[int, Tensor], tokens: Tensor, index: Tensor, taken: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What the head sees of all tokens at the taps of this stage, by name, (E + N, C) each.

        Of what stopped before that is what its gate made of it for the tap, else what it stopped with.
        """
        names = {f"tap{tap}": value for tap, value in tapped.items()}
        return {name: self.renewed(name, value, taken.get(name, tokens), index) for name, value in names.items()}


class MiddleStage(_LaterStage):
    """From one gate to the next: `tokens`, `index` (kept,) int64, `thresholds`, `floor` -> as `FirstStage`.

    What it takes of what is carried it gives, too, with the rows of what ran written anew.
    """

    def forward(
        self, tokens: Tensor, index: Tensor, thresholds: Tensor, floor: Tensor, *carried: Tensor
    ) -> tuple[Tensor, ...]:
        taken = dict(zip(self.takes, carried, strict=True))
        context = self.pooled(tokens, index, taken)
        running, tapped = self.run(tokens, index, **context)
        after = put_back(tokens, index, running)
        decision, answers = self.gated(after, running, index, thresholds, floor)
        given = {name: self.renewed(name, value, taken[name], index) for name, value in answers.items()}
        given |= context | self.at_taps(tapped, tokens, index, taken)
        return (after, *decision, *(given[name] for name in self.gives))


class LastStage(_LaterStage):
    """From the last gate to the logits: `tokens`, `index` and what was carried here -> `logits` (1, K, h, w)."""

    def forward(self, tokens: Tensor, index: Tensor, *carried: Tensor) -> Tensor:
        taken = dict(zip(self.takes, carried, strict=True))
        running, tapped = self.run(tokens, index, **self.pooled(tokens, index, taken))
        if self.model.spec.answer == "gate":
            return self.gates_answer(running, index, taken, tapped)
        seen = taken | self.at_taps(tapped, tokens, index, taken)
        # What has run to the end is its own answer: no lens touches it.
        ending = put_back(taken.get("answers", tokens), index, running)
        return self.model.decode(ending, [seen[f"tap{tap}"] for tap in self.model.spec.taps])

    def gates_answer(
        self, running: Tensor, index: Tensor, taken: dict[str, Tensor], tapped: dict[int, Tensor]
    ) -> Tensor:
        """Logits (1, K, h, w): the decode head's of the patches that are `running`, the gates' of the others."""
        spec, head = self.model.spec, cast("TokenLogitsHead", self.model.head)
        taps = [tapped[tap] if tap in tapped else take(taken[f"tap{tap}"], index) for tap in spec.taps]
        features = self.model.features(running, taps)[spec.extra_tokens :]
        logits = self.renewed("answers", head.head(features), taken["answers"], index)
        return grid_from_tokens(logits, spec.grid)


def stages_from_model(model: VisionTransformer) -> list[nn.Module]:
    """One module a stage, in order, sharing the model's parameters."""
    count = len(model.spec.gates)
    # Without a gate no number is unknown, and nothing is cut.
    if count == 0:
        return whole_stages(model)
    middle = [MiddleStage(model, number) for number in range(1, count)]
    return [FirstStage(model), *middle, LastStage(model, count)]


FAMILY = Family(
    build=VisionTransformer,
    stages=stages_from_model,
    resized=positions_at_size,
    derived=frozenset({COSINES, SINES}),
)
