from pathlib import Path

from jaxserver.adapters.checkpoints.cache import cache_folder


def test_the_environment_moves_the_cache() -> None:
    environment = {"JAXSERVER_CACHE": "/data/models", "XDG_CACHE_HOME": "/var/cache"}
    assert cache_folder(environment) == Path("/data/models")


def test_a_relative_cache_and_the_home_folder_are_made_absolute() -> None:
    assert cache_folder({"JAXSERVER_CACHE": "here"}) == Path.cwd() / "here"
    assert cache_folder({"JAXSERVER_CACHE": "~/models"}) == Path.home() / "models"


def test_the_users_cache_folder_is_the_default() -> None:
    home = Path.home() / ".cache" / "jaxserver"
    assert cache_folder({"XDG_CACHE_HOME": "/var/c"}) == Path("/var/c/jaxserver")
    assert cache_folder({}) == home
    assert cache_folder({"JAXSERVER_CACHE": "", "XDG_CACHE_HOME": "c"}) == home
