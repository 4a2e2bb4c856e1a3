"""Markov chains on energies: Langevin steps, with and without Metropolis's correction, their starts and memory."""
