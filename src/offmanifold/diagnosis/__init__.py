"""What a fitted model says about itself, and how large one should be."""
