import pytest

from benchmarks import accelerator


def test_on_a_cpu_nothing_is_apart_from_what_is_built_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    accelerator.main(["--size", "tiny", "--rows", "2", "--quantize", "int8"])
    first, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("cpu: Compute(platform='cpu', dtype='float32'")
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[:2] for row in cells] == [["int8", "whole rows"], ["int8", "128"]]
    for row in cells:
        assert row[2:5] == ["0.0e+00", "0.0e+00", "bitwise"]
        assert all(float(cell) > 0 for cell in row[5:])
