"""Studies: many runs from one file, as a graph of jobs that an engine runs."""
