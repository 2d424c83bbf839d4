import io
import threading
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxserver.ports.errors import ProfileRunning
from jaxserver.profiling import JaxProfiler
from tests.waiting import eventually


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made meanwhile."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_archive_holds_a_trace_and_nothing_is_left_behind(temporary: Path) -> None:
    worker = threading.Timer(0.1, lambda: jnp.sin(jnp.ones(8)).block_until_ready())
    worker.start()
    archive = JaxProfiler().capture(0.5, threading.Event())
    worker.join()

    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        assert files.testzip() is None
        traces = [i for i in files.infolist() if i.filename.endswith(".xplane.pb")]
        assert len(traces) == 1
        assert traces[0].file_size > 0
    assert list(temporary.iterdir()) == []


def test_one_at_a_time_and_a_cancelled_one_ends_at_once(temporary: Path) -> None:
    cancelled, archives = threading.Event(), []
    first = threading.Thread(
        target=lambda: archives.append(JaxProfiler().capture(60.0, cancelled))
    )
    first.start()
    assert eventually(lambda: any(temporary.iterdir()))
    with pytest.raises(ProfileRunning):
        JaxProfiler().capture(1.0, threading.Event())
    cancelled.set()
    first.join(30)
    assert len(archives) == 1


def test_one_that_the_program_itself_takes_is_not_disturbed(
    tmp_path_factory: pytest.TempPathFactory, temporary: Path
) -> None:
    own = tmp_path_factory.mktemp("own")
    jax.profiler.start_trace(str(own))
    try:
        with pytest.raises(ProfileRunning):
            JaxProfiler().capture(1.0, threading.Event())
    finally:
        jax.profiler.stop_trace()
    assert list(own.rglob("*.xplane.pb"))
    assert list(temporary.iterdir()) == []
