"""Sampling of discrete architecture choices from logits, and the entropy of logits."""

from dnas.choices.sampling import gumbel_choices, mean_entropy

__all__ = ["gumbel_choices", "mean_entropy"]
