"""A table with names: learn normal rows, score new ones, keep a false-alarm rate, save and load.

python examples/tables.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
from sklearn.datasets import load_breast_cancer

import offmanifold
from offmanifold import AE, auroc, false_discoveries

data = load_breast_cancer()
rows = pl.DataFrame(data.data, schema=list(data.feature_names))  # a pandas frame would do as well
benign, malignant = rows.filter(data.target == 1), rows.filter(data.target == 0)
normal, held_back = benign[:250], benign[250:]

# Malignant samples are never seen in training.
detector = AE(false_alarm_rate=0.05, random_state=0).fit(normal)
print("AUROC:", auroc(detector.score_samples(held_back), detector.score_samples(malignant)))
print("false alarms, asked 5 %:", f"{(detector.predict(held_back) == -1).mean():.1%}")
print("caught:", f"{(detector.predict(malignant) == -1).mean():.1%}")

# Among many rows at once: call outliers such that at most a tenth of them is false.
p = detector.p_values(held_back)
print("called among normal rows at FDR 10 %:", int(false_discoveries(p, 0.1).sum()))

with TemporaryDirectory() as folder:
    detector.save(Path(folder) / "benign.safetensors")
    again = offmanifold.load(Path(folder) / "benign.safetensors")
    shuffled = malignant.select(sorted(malignant.columns))  # columns are matched by name
    assert (again.score_samples(shuffled) == detector.score_samples(malignant)).all()
