"""The search loop and the problems that it drives."""

from dnas.search.co_search import CoSearch
from dnas.search.config import JointSearchConfig, SearchConfig
from dnas.search.goal import LatencyController, LatencyGoal
from dnas.search.loop import SearchResult, search
from dnas.search.problem import BilevelProblem, JointProblem, Pass, SearchProblem
from dnas.search.rates import RateSearch

__all__ = [
    "BilevelProblem",
    "CoSearch",
    "JointProblem",
    "JointSearchConfig",
    "LatencyController",
    "LatencyGoal",
    "Pass",
    "RateSearch",
    "SearchConfig",
    "SearchProblem",
    "SearchResult",
    "search",
]
