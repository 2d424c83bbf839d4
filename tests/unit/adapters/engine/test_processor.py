from pathlib import Path

import pytest

from jaxserver.adapters.engine import processor


@pytest.mark.parametrize(
    ("flags", "is_used"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni avx512_bitalg\n", True),
        ("flags\t\t: fpu avx512_vnni amx_bf16 amx_tile amx_int8\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile amx_int8\n", True),
        ("flags\t\t: fpu avx2 avx_vnni\n", False),
        ("model name\t: avx512_vnni\nflags\t\t: fpu\n", False),
        ("Features\t: fp asimd i8mm\n", False),
        (None, False),
    ],
)
def test_a_processor_that_multiplies_both_kinds_of_bytes_is_used_so(
    flags: str | None,
    is_used: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = tmp_path / "cpuinfo"
    calls: list[None] = []
    if flags is not None:
        told.write_text(f"processor\t: 0\n{flags}bogomips\t: 1\n")
    monkeypatch.setattr(processor, "multiply_both_on_cpu", lambda: calls.append(None))
    processor.use_processor(told)
    assert bool(calls) == is_used
    width = {"xla_cpu_prefer_vector_width": "512"} if is_used else {}
    assert processor.compiler_options(told) == width
