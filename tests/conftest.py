"""What every test shares: one thread and fixed seeds, so that results do not depend on the machine."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

# One thread a process: tests that run side by side would otherwise slow one another down.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed_everything() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
