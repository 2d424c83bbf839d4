"""What is built for several GPUs, emulated here, against one CPU."""

import numpy as np
import pytest

from tests.sharding.models import ONE, WISHES, Shape, answers


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1)], ids=str)
def test_answers_are_those_of_a_cpu(shape: Shape) -> None:
    found, expected = answers("built for GPUs", shape), answers("built for a CPU", ONE)
    rows = list(WISHES)
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(
        found.logits[rows], expected.logits[rows], atol=1e-4, rtol=0
    )
