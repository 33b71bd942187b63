"""``python -m glmkit`` is ``glmkit``."""

from .cli import main

raise SystemExit(main())
