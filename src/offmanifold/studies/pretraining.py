"""P3, Table 6: how long should the autoencoder be trained before it is normalised?"""

from __future__ import annotations

from offmanifold.studies.variations import Variation, before_and_after, study_of

# Epochs, and the paper's AUROC before and after normalisation.
PAPER = {0: (0.486, 0.552), 10: (0.581, 0.754), 50: (0.539, 0.945), 100: (0.532, 0.937), 150: (0.548, 0.914),
         200: (0.537, 0.919)}  # fmt: skip
STEPS_AN_EPOCH = 391
# Laptop: steps of 20 000 images; the paper's counts stand beside the nearest.
LAPTOP = {0: 0, 600: 10, 2500: 50, 5000: 100}


def variations(scale: str) -> list[Variation]:
    """Return a pair of rows a number of steps."""
    counts = {2: 10} if scale == "smoke" else LAPTOP if scale == "laptop" else {e * STEPS_AN_EPOCH: e for e in PAPER}
    rows: list[Variation] = []
    for steps, epochs in counts.items():
        rows += before_and_after(f"{steps:,} steps", {"pretraining_steps": steps}, *PAPER[epochs])
    return rows


STUDY = study_of(
    "pretraining",
    "How long should the autoencoder be trained before it is normalised?",
    "P3, Table 6",
    variations,
    "The paper's figures for 10, 50 and 100 epochs stand beside 600, 2 500 and 5 000 steps at laptop scale.",
)
