"""BitFit as a recipe of ``glmkit finetune``. Importing this module is free."""

from glmkit import RecipeSpec, RegisterRecipe, hookimpl


@hookimpl
def register_recipes(register: RegisterRecipe) -> None:
    """Add ``glmkit finetune bitfit``."""
    register(RecipeSpec("bitfit", "Biases and norms only.", f"{__name__}.recipe:recipe"))
