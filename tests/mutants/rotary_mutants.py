"""Misreadings of rotary positions: which tokens turn, by which angles, and which channels turn together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dovit_deploy.families import layers, rotary
from dovit_deploy.families.layers import PatchTransformer
from dovit_deploy.families.rotary import Rotations, rotated, rotation_tables
from tests.mutants.mutant import Catalogue, Overlay, Patch

CATALOGUE = Catalogue()


@CATALOGUE.add(caught_by="rotary")
def what_runs_is_turned_by_the_first_rows(patch: Patch) -> None:
    attend_at = PatchTransformer.attend_at

    def first_rows(self: Any, index: Tensor | None = None) -> Any:
        return attend_at(self, None if index is None else torch.arange(len(index)))

    patch.setattr(PatchTransformer, "attend_at", first_rows)


@CATALOGUE.add(caught_by="rotary")
def a_register_is_turned_like_the_last_patch(patch: Patch) -> None:
    def shifted(tokens: Tensor, rotations: Rotations, heads: int) -> Tensor:
        return rotated(tokens, Rotations(*(table.roll(1, 0) for table in rotations)), heads)

    patch.setattr(layers, "rotated", shifted)


@CATALOGUE.add(caught_by="rotary")
def neighbouring_channels_turn_together(patch: Patch) -> None:
    def interleaved(tokens: Tensor, rotations: Rotations, heads: int) -> Tensor:
        parts = tokens.reshape(len(tokens), heads, -1)
        halves = torch.cat([parts[..., ::2], parts[..., 1::2]], -1).reshape(tokens.shape)
        return rotated(halves, rotations, heads)

    patch.setattr(layers, "rotated", interleaved)


@CATALOGUE.add(caught_by="rotary")
def only_keys_turn(patch: Patch) -> None:
    def turned(rotations: Rotations, attend: Any = layers.attention) -> Any:
        return lambda query, key, value, heads: attend(query, rotated(key, rotations, heads), value, heads)

    patch.setattr(layers, "attend_turned", turned)


@CATALOGUE.add(caught_by="rotary")
def values_turn_too(patch: Patch) -> None:
    def turned(rotations: Rotations, attend: Any = layers.attention) -> Any:
        def all_three(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
            return attend(*(rotated(one, rotations, heads) for one in (query, key, value)), heads)  # type: ignore[no-any-return]

        return all_three

    patch.setattr(layers, "attend_turned", turned)


@CATALOGUE.add(caught_by="rotations")
def periods_are_made_anew(patch: Patch) -> None:
    def published(periods: Tensor, extra: int, grid: tuple[int, int]) -> Rotations:
        return rotation_tables(rotary.periods_from_base(100.0, 4 * len(periods)), extra, grid)

    patch.setattr(layers, "rotation_tables", published)


@CATALOGUE.add(caught_by="rotations")
def columns_come_before_rows(patch: Patch) -> None:
    def exchanged(periods: Tensor, extra: int, grid: tuple[int, int]) -> Rotations:
        return Rotations(*(table.roll(len(periods), -1) for table in rotation_tables(periods, extra, grid)))

    patch.setattr(layers, "rotation_tables", exchanged)


@CATALOGUE.add(caught_by="rotations")
def coordinates_are_those_of_corners(patch: Patch) -> None:
    patch.setattr(rotary, "torch", Overlay(torch, arange=lambda *bounds, **kind: torch.arange(*bounds, **kind) - 0.5))


@CATALOGUE.add(caught_by="rotations")
def coordinates_are_counted_in_training_patches(patch: Patch) -> None:
    def stretched(periods: Tensor, extra: int, grid: tuple[int, int]) -> Rotations:
        return rotation_tables(periods * 4 / grid[0], extra, grid)

    patch.setattr(layers, "rotation_tables", stretched)
