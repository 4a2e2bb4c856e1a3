"""Likelihoods, latent spaces, bounds, divergences and penalties: per row, in nats, constants included."""
