import threading
from pathlib import Path

import pytest

from jaxserver.adapters.checkpoints.download_progress import report_growth


def test_a_growing_folder_is_reported_from_nothing_to_all(tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    seen = {size: threading.Event() for size in (30, 50)}

    def progress(stage: str, done: int, total: int) -> None:
        reports.append((stage, done, total))
        if done in seen:
            seen[done].set()

    with report_growth(tmp_path, 50, progress):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "part").write_bytes(bytes(30))
        assert seen[30].wait(10)
        (tmp_path / "more").write_bytes(bytes(40))
        assert seen[50].wait(10)

    assert reports[0] == ("download", 0, 50)
    assert reports[-1] == ("download", 50, 50)
    assert {total for _, _, total in reports} == {50}
    assert [done for _, done, _ in reports] == sorted(done for _, done, _ in reports)


def test_a_download_that_fails_is_never_reported_as_done(tmp_path: Path) -> None:
    reports: list[int] = []
    with (
        pytest.raises(ValueError, match="lost"),
        report_growth(tmp_path, 50, lambda stage, done, total: reports.append(done)),
    ):
        raise ValueError("lost")
    assert set(reports) == {0}
