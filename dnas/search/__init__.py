"""Search loops and the protocols of search problems."""

from dnas.search.config import EstimatorSearchConfig, JointSearchConfig, OneShotConfig, SearchConfig
from dnas.search.latency_target import LatencyController, LatencyTarget
from dnas.search.loop import SearchProblems, SearchResult, SearchSettings, search
from dnas.search.problem import BilevelProblem, HasKinds, JointProblem, OneShotProblem, Pass, SearchProblem

__all__ = [
    "BilevelProblem",
    "EstimatorSearchConfig",
    "HasKinds",
    "JointProblem",
    "JointSearchConfig",
    "LatencyController",
    "LatencyTarget",
    "OneShotConfig",
    "OneShotProblem",
    "Pass",
    "SearchConfig",
    "SearchProblem",
    "SearchProblems",
    "SearchResult",
    "SearchSettings",
    "search",
]
