"""lm-evaluation-harness with Braid's models: importing this package registers the model type `braid` there."""

from __future__ import annotations

from lm.errors import UserError

try:
    import lm_eval  # noqa: F401
except ImportError:
    raise UserError("lm-evaluation-harness is not installed: pip install 'braid-lm[eval]'") from None

from eval.harness.model import BraidLM
from eval.harness.run import HarnessOptions, run_harness, table

__all__ = ["BraidLM", "HarnessOptions", "run_harness", "table"]
