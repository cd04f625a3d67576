"""The Hugging Face Hub, which may be out of reach: asked quickly, where its own client tries for half a minute."""

from __future__ import annotations

import time

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from transformers.utils import CONFIG_NAME

from lm.errors import first_line

PAUSE = 1.0
"""Seconds before the one attempt that follows a failed one."""


def is_cached(name: str, revision: str | None = None) -> bool:
    """Whether the model of a Hub id has been downloaded before, as far as its configuration tells."""
    try:
        return isinstance(try_to_load_from_cache(name, CONFIG_NAME, revision=revision), str)
    except HFValidationError:
        return False


def require_connection(name: str, revision: str | None = None) -> None:
    """Raises OSError where the Hub gives no answer to whether it has a model; a no is left to whoever asks for it."""
    try:
        url = hf_hub_url(name, CONFIG_NAME, revision=revision)
    except HFValidationError as error:
        raise OSError(first_line(error)) from None
    for attempt in range(2):
        try:
            get_hf_file_metadata(url)
        except HfHubHTTPError:
            pass
        except Exception as error:  # of the HTTP library, which is another from version to version
            if attempt == 0 and not isinstance(error, OfflineModeIsEnabled):
                time.sleep(PAUSE)
                continue
            raise OSError(f"there is no connection to it ({first_line(error)})") from None
        return
