"""The page to chat on: ``glmkit run web``."""
