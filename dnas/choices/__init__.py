"""Choices of an architecture: how discrete ones are drawn from logits, and how decided logits are."""

from dnas.choices.sampling import gumbel_choices, mean_entropy

__all__ = ["gumbel_choices", "mean_entropy"]
