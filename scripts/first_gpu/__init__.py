"""The first session on a GPU: what is right and how fast it is, in five parts; see ``scripts/first_gpu.sh``."""
