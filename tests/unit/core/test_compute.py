import pytest

from jaxserver.core.compute import ON_CPU, Compute, compute_on


@pytest.mark.parametrize(
    ("capability", "platform"),
    [("8.0", "cuda"), ("9.0", "cuda"), ("12.1", "cuda"), ("7.5", "gpu")],
)
def test_kernels_are_for_gpus_from_ampere_on(capability: str, platform: str) -> None:
    expected = Compute(platform=platform, dtype="bfloat16")
    assert compute_on("gpu", capability, "bfloat16") == expected


@pytest.mark.parametrize(("platform", "capability"), [("gpu", "gfx942"), ("tpu", "")])
def test_other_devices_compute_in_the_models_type_without(
    platform: str, capability: str
) -> None:
    expected = Compute(platform=platform, dtype="float16")
    assert compute_on(platform, capability, "float16") == expected


def test_a_cpu_computes_in_float32() -> None:
    assert compute_on("cpu", "", "bfloat16") == ON_CPU
