"""Defines the settings of the gates: how choices are relaxed, and how latency enters their loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nas.config.fields import Strict


class Projection(Strict):
    """Sets no latency term, and needs no settings: the gates meet the budget by construction."""


class Dual(Strict):
    """Sets the latency term loss + l g + rho/2 g^2, g = expected ms / budget - 1, after whose steps l <- l + lr g.

    The defaults come from a trial of ours, not from a paper.
    """

    lr: float = Field(default=0.05, gt=0, le=100, description="Step of the multiplier, with gates.latency=dual.")
    rho: float = Field(default=1.0, ge=0, le=1000, description="Weight of its quadratic term.")


class FBNet(Strict):
    """Sets the latency term of FBNet: loss * alpha log(expected us)^beta."""

    alpha: float = Field(
        default=0.2, gt=0, le=1000, description="Factor of the latency term, with gates.latency=fbnet.")
    beta: float = Field(default=0.6, gt=0, le=100, description="Its exponent.")


class Proxyless(Strict):
    """Sets the latency term of ProxylessNAS, added to the loss or multiplied with it.

    ``add``: loss + weight (expected ms / budget - 1); ``mul``: loss * alpha (log expected us / log budget)^beta.
    """

    form: Literal["add", "mul"] = Field(
        default="add", description="Whether latency is added or multiplied, with gates.latency=proxyless.")
    weight: float = Field(default=0.1, gt=0, le=1000, description="Weight of latency that is added.")
    alpha: float = Field(default=0.2, gt=0, le=1000, description="Factor of latency that is multiplied.")
    beta: float = Field(default=0.3, gt=0, le=100, description="Its exponent.")

    @model_validator(mode="after")
    def _has_effect(self) -> Proxyless:
        for name in ("alpha", "beta") if self.form == "add" else ("weight",):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with form={self.form}")
        return self


class Mnas(Strict):
    """Sets the latency term of MnasNet: loss * (expected ms / budget)^-w, w = alpha within the budget, else beta."""

    alpha: float = Field(
        default=-0.07, ge=-100, le=0, description="Exponent within the budget, with gates.latency=mnas.")
    beta: float = Field(default=-0.07, ge=-100, lt=0, description="Exponent above it.")


LatencyTerm = Projection | Dual | FBNet | Proxyless | Mnas


class Gates(Strict):
    """Sets how gates are trained: a step ``every`` batches, temperature falling from ``tau_start`` to ``tau_end``."""

    relaxation: Literal["two-path", "single", "gumbel"] = Field(
        default="two-path", description="How choices are relaxed; single: paths at random, nothing learned.")
    lr: float = Field(default=0.05, gt=0, le=100, description="Learning rate of the gates.")
    tau_start: float = Field(default=2.0, gt=0, le=1000, description="Temperature at the start of the search.")
    tau_end: float = Field(default=0.3, gt=0, le=1000, description="Temperature at its end.")
    every: int = Field(default=1, ge=1, le=10_000, description="Training steps to a step of the gates.")
    latency: Literal["projection", "dual", "fbnet", "proxyless", "mnas"] = Field(
        default="projection", description="How latency enters the loss; projection: as an equation, no weight to tune.")
    update: Literal["bilevel", "single"] = Field(
        default="bilevel", description="bilevel: gates learn on their own split; single: with the weights, on both.")
    widths: Literal["pair", "enumerated"] = Field(
        default="pair", description="Hidden widths: two of them that move, or each one a choice.")
    granularity: Literal["target", "space"] = Field(
        default="target",
        description="Widths beside which a wider one costs no more: left out (target), or kept (space).")
    dual: Dual = Dual()
    fbnet: FBNet = FBNet()
    proxyless: Proxyless = Proxyless()
    mnas: Mnas = Mnas()

    @property
    def term(self) -> LatencyTerm:
        """Returns the settings of the chosen latency term."""
        terms: dict[str, LatencyTerm] = {"projection": Projection(), "dual": self.dual, "fbnet": self.fbnet,
                                         "proxyless": self.proxyless, "mnas": self.mnas}
        return terms[self.latency]

    @model_validator(mode="after")
    def _falls(self) -> Gates:
        if self.tau_end > self.tau_start:
            raise ValueError(f"tau_end {self.tau_end:g} is above tau_start {self.tau_start:g}")
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Gates:
        for name in ("dual", "fbnet", "proxyless", "mnas"):
            if name != self.latency and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with latency={self.latency}; set gates.latency={name}")
        asked = (self.latency, self.update, self.widths)
        if self.relaxation == "single" and asked != ("projection", "bilevel", "pair"):
            raise ValueError(f"relaxation single learns no gates, so latency={self.latency}, update={self.update} and "
                             f"widths={self.widths} have no effect; set gates.relaxation=two-path")
        return self
