"""A plain Swin as data, the dense baseline of STViT-R: every block on all tokens (microsoft/Swin-Transformer)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dovit_deploy.bundle.swin_shape import PATCH, SwinShape


class SwinSpec(SwinShape):
    """Classification at sizes whose grids are made of whole windows."""

    architecture: Literal["swin"] = "swin"
    family: Literal["swin"] = "swin"
    stem: Literal["conv", "patch"] = "patch"
    classes: int = Field(gt=0)

    @model_validator(mode="after")
    def _whole_windows(self) -> SwinSpec:
        step = PATCH * 2 ** (len(self.depths) - 1)
        grids = [self.stage_grid(stage) for stage in range(len(self.depths))]
        whole = all(side % self.stage_window(stage) == 0 for stage, grid in enumerate(grids) for side in grid)
        if any(side % step for side in self.size) or not whole:
            unit = step * self.window
            raise ValueError(
                f"size {self.size[0]}x{self.size[1]}: Swin with windows of {self.window} takes multiples of {unit}"
            )
        return self

    def stage_window(self, stage: int) -> int:
        """Side of the windows of a stage: a coarser grid is one window."""
        return min(self.window, *self.stage_grid(stage))

    @property
    def task(self) -> Literal["classification"]:
        """What it is for."""
        return "classification"

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the results."""
        return {"logits": (1, self.classes)}

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Backbone in a few words."""
        return (("backbone", self.shape_text),)

    @property
    def counts(self) -> tuple[int, ...]:
        """All tokens run."""
        return (self.tokens,)

    @property
    def has_dense(self) -> bool:
        """It is dense."""
        return True
