"""The jobs as functions: what the commands of ``dnas`` do, for commands and scripts alike."""
