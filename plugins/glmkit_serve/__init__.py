"""Serving: an API as OpenAI's, a page to chat on, a queue of questions.

Importing this module is free; what does the work is imported when it is first needed.
"""

from __future__ import annotations

NAME = "serve"
