"""The one training loop, and what it needs: phases, checkpoints, progress, precision, threads."""
