"""Derivation of plain networks from networks with choices."""

from derive.choices.architecture import ChoicesArchitecture
from derive.choices.deriver import ChoiceDerivation, ChoiceDeriver
from derive.choices.point_wise import PointWiseDeriver

__all__ = ["ChoiceDerivation", "ChoiceDeriver", "ChoicesArchitecture", "PointWiseDeriver"]
