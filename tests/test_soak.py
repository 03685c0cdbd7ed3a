"""Ten seconds of what tests/soak.py does for hours."""

import pytest
from soak import soak

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_mixed_requests_have_exact_answers_and_leave_nothing_behind() -> None:
    wrong = await soak(8.0)
    assert not wrong, "\n".join(wrong[:20])
