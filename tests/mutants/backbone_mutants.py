"""Misreadings of DINOv2's files: what LayerScale scales, what registers are, epsilon, positions, the last norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dovit_deploy.checkpoints import official_state
from dovit_deploy.checkpoints.keys import Ours, some_rows
from dovit_deploy.families.folding import State, deployed
from dovit_deploy.families.vit import dinov2
from dovit_deploy.families.vit.network import VisionTransformer
from tests.mutants.mutant import Catalogue, Patch

CATALOGUE = Catalogue()


@CATALOGUE.add(caught_by="dinov2")
def layer_scale_is_forgotten_on_the_bias(patch: Patch) -> None:
    def without(state: State) -> State:
        kept = {name: tensor for name, tensor in state.items() if name.endswith(("output.bias", "contract.bias"))}
        return {**deployed(state), **kept}

    patch.setattr(official_state, "deployed", without)


@CATALOGUE.add(caught_by="dinov2")
def layer_scales_are_exchanged(patch: Patch) -> None:
    def exchanged(state: State) -> State:
        other = {"scale1.factor": "scale2.factor", "scale2.factor": "scale1.factor"}
        ends = {name: next((end for end in other if name.endswith(end)), "") for name in state}
        renamed = {name.removesuffix(end) + other.get(end, ""): state[name] for name, end in ends.items()}
        return deployed(renamed)

    patch.setattr(official_state, "deployed", exchanged)


@CATALOGUE.add(caught_by="dinov2")
def registers_are_given_positions(patch: Patch) -> None:
    def rows(tokens: str, positions: str, *, registers: int, patches: int) -> dict[str, Ours]:
        every = {positions: some_rows("positions", range(1 + patches))}
        return {tokens: some_rows("extra_tokens", range(1, 1 + registers)), **every} if registers else every

    patch.setattr(dinov2, "row_keys", rows)


@CATALOGUE.add(caught_by="dinov2")
def registers_stand_before_the_class_token(patch: Patch) -> None:
    keys = {**dinov2.DINOV2_KEYS, "cls_token": some_rows("extra_tokens", range(3, 4))}
    make = dinov2.row_keys

    def rows(tokens: str, positions: str, *, registers: int, patches: int) -> dict[str, Ours]:
        if not registers:
            return {**make(tokens, positions, registers=0, patches=patches), "cls_token": dinov2.extra_token(0)}
        found = make(tokens, positions, registers=registers, patches=patches)
        return {**found, tokens: some_rows("extra_tokens", range(registers))}

    patch.setattr(dinov2, "DINOV2_KEYS", keys)
    patch.setattr(dinov2, "row_keys", rows)


@CATALOGUE.add(caught_by="dinov2")
def norms_have_torchs_epsilon(patch: Patch) -> None:
    patch.setattr(dinov2, "NORM_EPS", 1e-5)


@CATALOGUE.add(caught_by="dinov2")
def positions_are_resized_to_size_without_registers_too(patch: Patch) -> None:
    patch.setattr(dinov2, "_position_mode", lambda network, registers: "antialias")


@CATALOGUE.add(caught_by="dinov2")
def positions_are_resized_by_factor_with_registers_too(patch: Patch) -> None:
    patch.setattr(dinov2, "_position_mode", lambda network, registers: "scale")


@CATALOGUE.add(caught_by="dinov2")
def the_last_norm_is_missing(patch: Patch) -> None:
    def decode(self: Any, tokens: Tensor, *others: Any) -> Tensor:
        del others
        return self.head(tokens[self.spec.extra_tokens :], self.spec.grid)  # type: ignore[no-any-return]

    patch.setattr(VisionTransformer, "decode", decode)
