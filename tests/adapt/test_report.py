"""The first line of the report: worth it or not, and what is simpler."""

from __future__ import annotations

import pytest

from dovit_deploy.adapt.report import GateEntry, RuleBeside, TableEntry, WayEntry, domain_doubt, verdict
from dovit_deploy.bundle.calibration import Interval


def beside(gain: float, ends: tuple[float, float] | None = None, *, saved: float = 0.3) -> RuleBeside:
    interval = None if ends is None else Interval(low=ends[0], high=ends[1])
    return RuleBeside(
        thresholds=(0.9,), flops_saved=saved, agreement=0.99, miou=None, gain=gain, gain_interval=interval
    )


def way(name: str, kind: str, *, saved: float = 0.3, agreement: float = 0.99, rule=None, chosen=None) -> WayEntry:
    return WayEntry(
        name=name,
        kind=kind,
        thresholds=None,
        gmacs=1.0,
        flops_saved=saved,
        agreement=agreement,
        agreement_interval=Interval(low=agreement - 0.01, high=agreement + 0.01),
        miou=None,
        drop=None,
        drop_interval=None,
        rule=rule,
        chosen=chosen,
    )


RULE = way("rule", "rule")


def table(*ways: WayEntry, confidence: float = 0.8) -> TableEntry:
    return TableEntry(
        name="x", images=9, blocks=9, labelled=False, dense_gmacs=2, dense_miou=None, ways=ways, left_out=None,
        confidence=confidence,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("saved", "rule", "chosen", "good"),
    [
        # It costs less than the rule as chosen, and is as good within the interval.
        (0.4, None, beside(0.2, (-0.1, 0.5)), True),
        (0.4, beside(-5.0, (-6.0, -4.0)), beside(2.0, (1.5, 2.5)), False),
        # It costs more: the rule is asked where it saves as much.
        (0.2, beside(0.3, (0.1, 0.5)), beside(-1.0, (-2.0, -0.5)), False),
        (0.2, beside(0.3, (-0.1, 0.5)), beside(1.0, (0.5, 2.0)), True),
        # Without an interval the numbers themselves count.
        (0.2, beside(0.3), beside(1.0), False),
        (0.2, beside(0.0), beside(1.0), True),
        # What saves nothing is no rival, nor one that the rule cannot be compared with.
        (-0.1, beside(-1.0), beside(-1.0), False),
        (0.2, None, beside(-1.0), False),
    ],
)
def test_what_is_simpler_and_as_good(saved, rule, chosen, good) -> None:
    rival = way("dense at 48x64", "smaller-input", saved=saved, rule=rule, chosen=chosen)
    assert rival.as_good is good
    # Random stopping is a control, and nothing that one would run instead.
    assert not way("random", "random", saved=saved, rule=beside(-1.0), chosen=beside(-1.0)).as_good
    said = verdict(table(RULE, rival), "")
    assert said.startswith("probably not worth it: dense at 48x64 is as good within the interval") is good
    assert said.startswith("30.0% of the MACs saved, 1.00% of the pixels differ from dense") is not good


@pytest.mark.parametrize(
    ("gain", "ends", "good"), [(-0.2, (-0.5, 0.1), True), (0.2, (-0.1, 0.5), True), (0.2, (0.1, 0.3), False)]
)
def test_gates_that_choose_no_better_than_chance_are_named(gain, ends, good) -> None:
    drawn = way("random, same counts", "random", rule=beside(gain, ends))
    said = verdict(table(RULE, drawn), "")
    assert said.endswith("; as many tokens stopped at random are as good within the interval") is good
    assert said.endswith("; nothing simpler is as good at equal MACs") is not good


def test_nothing_stops_and_what_would_do_instead() -> None:
    poor = way("everything at gate 2", "static", saved=0.8, agreement=0.5)
    fine = way("dense at 48x64", "smaller-input", saved=0.4, agreement=0.995)
    assert verdict(table(poor), "no thresholds") == "nothing stops: no thresholds"
    assert verdict(table(poor, fine), "no thresholds") == (
        "nothing stops: no thresholds; dense at 48x64 is simpler and good enough (40.0% of the MACs saved, 0.50% of "
        "the pixels differ from dense)"
    )


def test_a_network_that_was_fine_tuned_is_held_to_the_given_one() -> None:
    dense = way("nothing stopped", "dense", saved=0.0, agreement=0.998, rule=None)
    rival = way("dense at 48x64", "smaller-input", rule=beside(-1.0), chosen=beside(-1.0))
    assert table(RULE).dense is None and table(dense, RULE).dense == dense and not dense.as_good
    assert verdict(table(dense, RULE), "").startswith(
        "30.0% of the MACs saved, 1.00% of the pixels differ from the network as it was given; nothing simpler"
    )
    assert verdict(table(dense, RULE, rival), "").startswith("probably not worth it: dense at 48x64")


def test_images_of_another_kind_are_noticed() -> None:
    gates = (GateEntry(layer=2, agreement=0.9, confidence=0.8, confidence_spread=0.04),)
    assert domain_doubt(table(confidence=0.7), gates, fitted=12) is None
    for confidence in (0.6, 0.95):
        doubt, unsure = (domain_doubt(table(confidence=confidence), gates, fitted=count) for count in (12, 3))
        assert doubt is not None and f"is {confidence:.2f} there, and 0.80 on" in doubt
        assert doubt.endswith("they seem to be of another kind: the thresholds may be wrong there")
        # Of few images a gate is surer than of their like.
        assert unsure is not None and "of another kind, or 3 images too few to fit to: the" in unsure
