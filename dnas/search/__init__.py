"""The search loop and the problems that it drives."""

from dnas.search.co_search import CoSearch
from dnas.search.config import SearchConfig
from dnas.search.loop import SearchResult, search
from dnas.search.problem import Pass, SearchProblem

__all__ = ["CoSearch", "Pass", "SearchConfig", "SearchProblem", "SearchResult", "search"]
