"""P3, Table 8: how does the size of the latent space matter, before and after normalisation?"""

from __future__ import annotations

from offmanifold.studies.variations import Variation, before_and_after, study_of

# Latent size, the paper's AUROC of the autoencoder and of NAE.
PAPER = {
    2: (0.626, 0.591), 4: (0.748, 0.550), 8: (0.825, 0.723), 16: (0.614, 0.911), 32: (0.525, 0.926),
    64: (0.506, 0.884), 128: (0.546, 0.830), 256: (0.556, 0.732),
}  # fmt: skip


def variations(scale: str) -> list[Variation]:
    """Return a pair of rows a latent size."""
    rows: list[Variation] = []
    for size, papers in PAPER.items():
        if scale == "smoke" and size != 4:
            continue
        if scale == "laptop" and size not in (4, 8, 16, 32, 64):
            continue
        rows += before_and_after(f"latent size {size}", {"latent_dim": size}, *papers)
    return rows


STUDY = study_of("latent-dim", "How does the size of the latent space matter?", "P3, Table 8", variations)
