"""Samples of a search of choices as candidates."""

import torch

from derive.choices.candidates import distinct_samples


def sampled(logits, count, rates=frozenset(), used=lambda options: options):
    def options_of(found):
        return {name: round(float(v)) if name in rates else int(v.argmax()) for name, v in found.items()}

    return distinct_samples(logits, rates, count, torch.Generator().manual_seed(0), options_of, options_of, used)


def test_the_likeliest_is_first_and_samples_follow_their_probabilities():
    """All are different; an option of probability zero is never drawn, rates move to their neighbours."""
    logits = {"a": torch.tensor([2.0, 1.0, -1e9]), "b": torch.zeros(4), "r": torch.tensor(2.2)}
    found = sampled(logits, 12, frozenset({"r"}))
    assert found[0] == {"a": 0, "b": 0, "r": 2}
    assert len({tuple(options.values()) for options in found}) == len(found) == 12
    assert {options["a"] for options in found} == {0, 1}
    assert {options["r"] for options in found} <= {1, 2, 3}
    assert found == sampled(logits, 12, frozenset({"r"}))


def test_a_search_that_has_decided_gives_fewer():
    """Also where networks differ in options that they do not use."""
    assert len(sampled({"a": torch.tensor([1e9, 0.0])}, 5)) == 1
    logits = {"a": torch.tensor([1e9, 0.0]), "unused": torch.zeros(9)}
    assert len(sampled(logits, 5, used=lambda options: {"a": options["a"]})) == 1
