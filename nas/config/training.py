"""Defines the settings of training: of the supernet, and of fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nas.config.fields import Epochs, Fraction, Name, Share, Strict

USUAL = "default: as many as the number of images asks for"


class Training(Strict):
    """Sets how weights are trained: by AdamW; epochs count passes over the train split."""

    batch: int = Field(default=32, ge=2, le=65_536, description="Images in a training step.")
    lr: float = Field(
        default=0.003, gt=0, le=100, description="Highest learning rate of the supernet (AdamW, one cycle).")
    finetune_lr: float = Field(default=0.004, gt=0, le=100, description="Highest learning rate of fine-tuning.")
    weight_decay: float = Field(default=0.02, ge=0, le=1, description="Weight decay of AdamW.")
    sandwich_every: int = Field(
        default=2, ge=0, le=1000, description="Steps between two that train the largest network as well; 0: never.")
    largest_first: Share | None = Field(
        default=None, description="Share of the warm-up in which the largest network learns alone, growing from a "
                                  "small one; default: 0.6.")
    blockwise: Share | None = Field(
        default=None,
        description="Share of the warm-up in which choices learn to stand in for its blocks; default: 0.4.")
    warmup_epochs: Epochs = Field(
        default=None, description=f"Epochs before gates learn; {USUAL}.")
    search_epochs: Epochs = Field(
        default=None, description=f"Epochs in which gates learn and branches are pruned; {USUAL}.")
    settle_epochs: Epochs = Field(
        default=None, description=f"Epochs of what is left, before selection; {USUAL}.")
    finetune_epochs: Epochs = Field(
        default=None, description="Epochs of each pick (where they grow, the mean: the smaller, the more), and of nas "
                                  f"train (epochs there); {USUAL}.")
    epoch_images: int | None = Field(
        default=None, ge=2, description="Images of an epoch, drawn anew for each; default: all of the split.")
    augment: Name | None = Field(
        default=None, description="Augmentation: none, crop or flip-crop; default: what suits the data.")
    policy: Literal["none", "trivialaugment", "randaugment"] = Field(
        default="none", description="Operations drawn for each image, on top of augment.")
    erase: Share = Field(default=0.0, description="Share of images that lose a random rectangle; 0: none.")
    mix: Literal["none", "mixup", "cutmix", "both"] = Field(
        default="none", description="How pairs of images and their labels are mixed in fine-tuning.")
    label_smoothing: Fraction = Field(default=0.05, description="Label smoothing of the loss.")
    distill: Literal["grow", "kd", "none", "hints", "fsp", "mutual", "born-again", "assistant"] = Field(
        default="grow", description="What a pick learns from others in fine-tuning; grow: it inherits the weights of "
                                    "the smaller ones.")
    inplace: Literal["kl", "alpha"] = Field(
        default="kl", description="What small networks of the supernet learn from the largest by.")
    attend: Literal["none", "best-up", "worst-up"] = Field(
        default="none", description="Which of attend_to random networks is trained.")
    attend_to: int = Field(default=3, ge=2, le=32, description="How many random networks attend chooses from.")
    ema: Fraction = Field(
        default=0.0, description="Decay of the averaged weights, which are then those judged; 0: none.")
    finetune_ema: Fraction = Field(
        default=0.0,
        description="Decay of the averaged weights of fine-tuning, which are then those delivered; 0: none.")
    accumulate: int = Field(
        default=1, ge=1, le=65_536, description="Parts that a batch is computed in, for less memory.")
    amp: Literal["auto", "none", "bf16", "fp16"] = Field(
        default="auto", description="Half precision in training; auto: on a GPU.")

    @model_validator(mode="after")
    def _parts_of_the_warmup(self) -> Training:
        first, then = self.largest_first or 0.0, self.blockwise or 0.0
        if first + then > 1 + 1e-9:
            raise ValueError(f"largest_first {first:g} and blockwise {then:g} are shares of one warm-up: together at "
                             "most 1")
        return self

    def beginning(self, trained: bool) -> tuple[float, float]:
        """Returns the shares of the warm-up of ``largest_first`` and ``blockwise``. Where none was given: 0 for weights
        that are ``trained`` already, else 0.6 and 0.4; where one was given, the other is at most what it leaves.
        """
        first, then = self.largest_first, self.blockwise
        if trained and first is None and then is None:
            return 0.0, 0.0
        first = min(0.6, 1 - (then or 0.0)) if first is None else first
        return first, min(0.4, 1 - first) if then is None else then

    @model_validator(mode="after")
    def _acts_in_fine_tuning(self) -> Training:
        for key in ("mix", "finetune_ema"):
            if self.finetune_epochs == 0 and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect without fine-tuning (finetune_epochs=0): leave one of them out")
        return self

    @model_validator(mode="after")
    def _equal_parts(self) -> Training:
        if self.batch % self.accumulate or self.batch < 2 * self.accumulate:
            raise ValueError(f"batch {self.batch} does not make {self.accumulate} (accumulate) equal parts of at least "
                             "2 images")
        return self
