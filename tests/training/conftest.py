"""Images for the tests of training."""

import pytest
from colours import colours

from nas.training.data import Data


@pytest.fixture
def data() -> Data:
    return colours()
