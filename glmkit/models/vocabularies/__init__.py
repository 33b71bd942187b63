"""The vocabularies on disk: which files hold which, read with clear errors.

==========================  =====================  ==============================================
file                        class                  models
==========================  =====================  ==============================================
`ice_text.model`            :class:`IceText`       ChatGLM-6B
`tokenizer.model`, pieces   :class:`Pieces`        ChatGLM2, ChatGLM3
`tokenizer.model`, ranks    :class:`Ranks`         GLM-4-9B
`tokenizer.json`            :class:`Described`     whatever lies in Hugging Face's format
==========================  =====================  ==============================================

A folder may hold several: the file that the model was published with wins.
"""

from .described import Described
from .icetext import IceText
from .opening import find
from .pieces import Pieces
from .ranks import Ranks

__all__ = ["Described", "IceText", "Pieces", "Ranks", "find"]
