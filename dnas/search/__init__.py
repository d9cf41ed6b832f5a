"""Search loops and the protocols of search problems."""

from dnas.search.config import JointSearchConfig, SearchConfig
from dnas.search.latency_target import LatencyController, LatencyTarget
from dnas.search.loop import SearchResult, search
from dnas.search.problem import BilevelProblem, JointProblem, Pass, SearchProblem

__all__ = [
    "BilevelProblem",
    "JointProblem",
    "JointSearchConfig",
    "LatencyController",
    "LatencyTarget",
    "Pass",
    "SearchConfig",
    "SearchProblem",
    "SearchResult",
    "search",
]
