import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

D_MODEL = 32
FEATURES = 48


@pytest.fixture(scope="session")
def sparse_data() -> Tensor:
    """Rows with 3 of 48 features on, in 32 dimensions, around a mean far from zero and at a scale far from one."""
    generator = torch.Generator().manual_seed(0)
    dictionary = F.normalize(torch.randn(FEATURES, D_MODEL, generator=generator), dim=1)
    on = torch.rand(20_000, FEATURES, generator=generator).topk(3, dim=1).indices
    strength = 0.5 + torch.rand(20_000, 3, generator=generator)
    rows = F.embedding_bag(on, dictionary, mode="sum", per_sample_weights=strength)
    mean = torch.randn(D_MODEL, generator=generator)
    return 20 * (rows + 0.01 * torch.randn(rows.shape, generator=generator) + mean)
