"""The study of searches: a benchmark of trained networks, and what searches find on it."""
