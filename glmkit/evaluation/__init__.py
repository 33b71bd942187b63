"""How good a model's answers are, and whether two models differ. Light floor: no torch."""
