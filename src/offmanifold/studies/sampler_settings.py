"""P3, Table 7: what do the latent chain, the replay buffer and the sphere contribute?"""

from __future__ import annotations

from offmanifold.studies.variations import Variation, study_of

# Latent steps, replay, sphere, the paper's AUROC.
PAPER = (
    (10, True, True, 0.957),
    (0, False, True, 0.839),
    (50, True, True, 0.944),
    (10, False, True, 0.936),
    (50, False, True, 0.952),
    (10, True, False, 0.662),
)


def variations(scale: str) -> list[Variation]:
    """Return the table's rows."""
    rows = []
    for steps, replay, sphere, paper in PAPER[:2] if scale == "smoke" else PAPER:
        name = f"{steps} latent steps, {'replay' if replay else 'no replay'}, {'sphere' if sphere else 'euclidean'}"
        parameters = {
            "latent_chain": [min(steps, 2) if scale == "smoke" else steps, 0.2, 0.05],
            "replay_size": 10_000 if replay else 0,
            "latent": "sphere" if sphere else "euclidean",
        }
        rows.append(Variation(name, "nae", parameters, paper))
    return rows


STUDY = study_of(
    "sampler-settings", "What do latent chain, replay buffer and sphere contribute?", "P3, Table 7", variations
)
