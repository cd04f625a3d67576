"""Braid: hybrid long-context language models, from pretraining to generation.

The ground floor, `kernels/`, shares its import name with a package of Hugging Face's that transformers uses where it
is installed. So ours has no `__init__.py` and only lends its folders to the package of that name: Python finds
Hugging Face's where there is one, whatever the order of `sys.path`, and a namespace package where there is none. Either
way the name then also leads to our folders, which carry other names than Hugging Face's modules.
"""

from pathlib import Path

import kernels

__version__ = "0.1.0"

_ours = str(Path(__file__).resolve().parent.parent / "kernels")
if _ours not in kernels.__path__:
    kernels.__path__ = [*kernels.__path__, _ours]
