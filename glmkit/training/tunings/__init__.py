"""What of a model is trained, and how it is kept: the tunings that recipes are made of."""
