"""The jobs of dnas as functions, used by the commands and the scripts."""
