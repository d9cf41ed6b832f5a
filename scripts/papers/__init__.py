"""The tables of the papers as experiments: one YAML file for each, run by ``python -m scripts.papers NAME``."""
