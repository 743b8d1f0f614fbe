"""Pick rules: how far a step narrows a group, and what decides between the groups."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PickRule:
    """What a step tries and compares.

    Attributes:
        per_saving: the increase of the score is divided by what the candidate saves of what is missing to the target.
        share: a group is narrowed by as many choices as it takes to save this part of the full network's multiply-adds, so
            that candidates of cheap and of dear layers save about the same; 0 is one choice.
    """

    per_saving: bool = False
    share: float = 0.0


PICK_RULES = {
    "drop": PickRule(),  # AutoSlim, section 3.2
    "drop-per-saving": PickRule(per_saving=True),
    "equal-saving": PickRule(per_saving=True, share=0.02),  # NetAdapt (1804.03230), with candidates of a step of 2 %
}
