"""Reads epochs of one of two ranks, as PyTorch's loaders do: prints each sample's number."""
import pathlib
import sys

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


class Images(Dataset):
    def __init__(self, root):  # as torchvision's ImageFolder lists them
        self.files = [f for c in sorted(pathlib.Path(root).iterdir()) for f in sorted(c.glob("*.jpg"))]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return i, len(self.files[i].read_bytes())


torch.set_num_threads(1)
data = Images(sys.argv[1])
sampler = DistributedSampler(data, num_replicas=2, rank=1, seed=11)
loader = DataLoader(data, batch_size=16, sampler=sampler, num_workers=3, persistent_workers=True)
for epoch in range(2):
    sampler.set_epoch(epoch)
    for numbers, sizes in loader:
        print(epoch, *numbers.tolist(), flush=True)
