"""DreamBooth: teach a picture model one thing from a few photographs, as a LoRA.

``recipe.dreambooth`` is the recipe, ``config.DreamboothConfig`` what it is told. Importing this
module is free.
"""
