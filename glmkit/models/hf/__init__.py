"""The same models as transformers' own classes. Only this package of the torch floor imports it."""
