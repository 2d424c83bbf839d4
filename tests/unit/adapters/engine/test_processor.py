from pathlib import Path

import pytest

from jaxserver.adapters.engine import processor


@pytest.mark.parametrize(
    ("flags", "few_too"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni avx512_bitalg\n", False),
        ("flags\t\t: fpu avx512_vnni amx_bf16 amx_tile amx_int8\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile amx_int8\n", True),
        ("flags\t\t: fpu avx2 avx_vnni\n", None),
        ("model name\t: avx512_vnni\nflags\t\t: fpu\n", None),
        ("Features\t: fp asimd i8mm\n", None),
        (None, None),
    ],
)
def test_a_processor_that_multiplies_both_kinds_of_bytes_is_used_so(
    flags: str | None,
    few_too: bool | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, used = tmp_path / "cpuinfo", []
    if flags is not None:
        told.write_text(f"processor\t: 0\n{flags}bogomips\t: 1\n")
    monkeypatch.setattr(
        processor, "multiply_both_on_cpu", lambda *, few_too: used.append(few_too)
    )
    processor.use_processor(told)
    assert used == ([] if few_too is None else [few_too])
    width = {} if few_too is None else {"xla_cpu_prefer_vector_width": "512"}
    assert processor.compiler_options(told) == width
