"""Says where fetched models are kept between runs."""

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "JAXSERVER_CACHE"


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder that `JAXSERVER_CACHE` names, else `jaxserver` in the user's cache.

    It need not exist yet.
    """
    if chosen := environment.get(VARIABLE):
        return Path(os.path.expanduser(chosen)).absolute()
    user_cache = Path(environment.get("XDG_CACHE_HOME", ""))
    if not user_cache.is_absolute():  # the XDG specification has such a value ignored
        user_cache = Path(os.path.expanduser("~")) / ".cache"
    return user_cache / "jaxserver"
