"""What the process imports from which others are forked: everything slow, and nothing that starts a thread."""

from __future__ import annotations

import truing.build.chain
import truing.build.load_result
import truing.evaluate.exact
import truing.models.sampling

__all__ = ["truing"]
