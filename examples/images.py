"""Images: what the model makes of an input, and bits per dimension.

python examples/images.py
"""

from sklearn.datasets import load_digits

from offmanifold import VAE, auroc

digits = load_digits()
images = digits.images / 16  # floats in [0, 1]; uint8 works too
known, odd = images[digits.target != 4], images[digits.target == 4]

detector = VAE(random_state=0).fit(known[:1200])
new = known[1200:]
print("AUROC:", auroc(detector.score_samples(new), detector.score_samples(odd)))
print("the decoder's variance:", float(detector.gamma_))
print("bits per dimension on [0, 1]:", detector.bits_per_dim(new).mean().round(2))
print("the score's terms:", {name: float(term.mean().round(1)) for name, term in detector.score_terms(new).items()})
print("reconstructions:", detector.reconstruct(odd[:3]).shape, "codes:", detector.transform(odd[:3]).shape)
print("drawn from the model:", detector.sample(2, random_state=0).shape)
