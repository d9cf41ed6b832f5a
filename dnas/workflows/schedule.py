"""How the time of the whole way is divided: epochs of the search and of the retraining, from what their parts take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

SHARES = {"table": 0.1, "search": 0.35, "teacher": 0.2, "student": 0.25}
"""Shares of the time; the rest is for the check of the data, the derivation, the export and the report."""
FIXED_S = 60.0
"""Time of the start, the derivations, the export and the report."""
MARGIN = 1.25
"""Factor of all measured times: later steps share the machine with other work, and caches are cold at first."""
FEWEST_SEARCH, FEWEST_RETRAIN = 3, 4
"""The fewest epochs of the search (both phases) and of a retraining."""
FEWEST_JUDGED = 50
"""The fewest networks that an estimator can be fitted to."""
JUDGING_SHARE = 1 / 3
"""The most of the search's time that judging networks takes, if there are more than the fewest."""
SEARCH_VALIDATIONS, RETRAIN_VALIDATIONS = 4, 10
_CHECKED_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the parts of the whole way take on this machine, in seconds.

    entry: measuring an operator of the latency table at least once. read: reading and augmenting an image.
    image: training a derived network on one image. step: a step of the search. score: scoring one image in a validation
    of the search. judge: running one network of the supernet on one image.
    """

    entry: float
    read: float
    image: float
    step: float
    score: float
    judge: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much there is to do.

    entries: operators of the latency table. train, validation: images. batch: images of a step of the search, which
    trains on ``searched`` of the training images and scores ``scored`` others. most_search, most_retrain: epochs that
    are enough. most_judged: networks to judge at the end of the search, 0 for none; ``judging``: the images that one
    network sees. networks: how many networks are retrained.
    """

    entries: int
    train: int
    validation: int
    batch: int
    searched: int
    scored: int
    most_search: int
    most_retrain: int
    most_judged: int = 0
    judging: int = 0
    networks: int = 2


@dataclass(frozen=True)
class Schedule:
    """Epochs of the search (both phases) and of each retraining; ``table_s``: budget of the table.

    ``judged``: networks to judge at the end of the search. ``seconds``: the estimated times by part.
    """

    table_s: float
    search_epochs: int
    retrain_epochs: int
    judged: int
    seconds: Mapping[str, float]

    @property
    def total_s(self) -> float:
        """The estimated time of everything."""
        return sum(self.seconds.values())


def schedule(time_s: float, work: Work, costs: Costs) -> Schedule:
    """The longest search and retraining that fit into ``time_s``, or the shortest ones if nothing fits.

    What the table takes beyond its share is taken from the search and the retraining, in proportion to their shares.
    """
    budget = SHARES["table"] * time_s
    table = max(budget, MARGIN * work.entries * costs.entry)
    checked = min(_CHECKED_IMAGES, work.train) + min(_CHECKED_IMAGES, work.validation)
    fixed = FIXED_S + MARGIN * checked * costs.read
    left = max(0.0, time_s - table - fixed)
    trained = ("teacher", "student")[-work.networks :]
    whole = SHARES["search"] + sum(SHARES[name] for name in trained)
    limit = left * SHARES["search"] / whole
    one = MARGIN * work.judging * costs.judge
    judged = 0
    if work.most_judged:
        judged = max(FEWEST_JUDGED, min(work.most_judged, int(JUDGING_SHARE * limit / one)))

    def searching(epochs: int) -> float:
        steps = work.searched // work.batch
        epoch = steps * (costs.step + 2 * work.batch * costs.read)
        scored = work.scored + min(8, steps) * work.batch  # with the batches for BatchNorm's statistics
        training = epochs * epoch + validations(epochs, SEARCH_VALIDATIONS) * scored * (costs.score + costs.read)
        return judged * one + MARGIN * training

    def retraining(epochs: int) -> float:
        scored = validations(epochs, RETRAIN_VALIDATIONS) * work.validation
        return MARGIN * (epochs * work.train * (costs.image + costs.read) + scored * (costs.image / 2 + costs.read))

    search = _longest(searching, limit, FEWEST_SEARCH, work.most_search)
    # Teacher and student are trained equally long, so the smaller share counts.
    share = min(SHARES[name] for name in trained) * left / whole
    retrain = _longest(retraining, share, FEWEST_RETRAIN, work.most_retrain)
    seconds = {
        "table": table,
        "search": searching(search),
        **{name: retraining(retrain) for name in trained},
        "rest": fixed,
    }
    return Schedule(budget, search, retrain, judged, seconds)


def validate_every(epochs: int, most: int) -> int:
    """Epochs between validations, so that there are at most ``most``."""
    return -(-epochs // most)


def validations(epochs: int, most: int) -> int:
    """The number of validations; the last epoch is always validated."""
    return -(-epochs // validate_every(epochs, most))


def _longest(seconds: Callable[[int], float], limit_s: float, fewest: int, most: int) -> int:
    """The most epochs, from ``fewest`` to ``most``, that take at most ``limit_s``; ``fewest`` if even these do not."""
    low, high = fewest, max(fewest, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= limit_s else (low, middle - 1)
    return low
