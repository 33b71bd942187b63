"""The ray engine: rows of a batch job shared out to workers on many machines."""
