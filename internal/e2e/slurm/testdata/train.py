"""Trains a linear model on the histograms of a folder's files, class by folder."""
import hashlib
import pathlib
import sys

import torch
from torch.utils.data import DataLoader, Dataset


class Files(Dataset):
    def __init__(self, root):
        self.files = sorted(p for p in pathlib.Path(root).rglob("*") if p.is_file())
        self.classes = sorted({p.parent.name for p in self.files})

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        body = self.files[i].read_bytes()
        histogram = torch.bincount(torch.frombuffer(bytearray(body), dtype=torch.uint8).int(), minlength=256)
        return histogram.float() / len(body), self.classes.index(self.files[i].parent.name), list(hashlib.sha256(body).digest())


torch.manual_seed(1)
torch.set_num_threads(1)
data = Files(sys.argv[1])
loader = DataLoader(data, batch_size=20, shuffle=True, num_workers=4, persistent_workers=True)
model = torch.nn.Linear(256, len(data.classes))
optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
for epoch in range(2):
    seen, digest, right = 0, [0] * 32, 0
    for x, y, sums in loader:
        out = model(x)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(out, y).backward()
        optimizer.step()
        seen += len(y)
        right += (out.argmax(1) == y).sum().item()
        for k, column in enumerate(sums):
            for b in column.tolist():
                digest[k] ^= b
    print(f"epoch {epoch}: {seen} files, {bytes(digest).hex()}")
print(f"right: {right / seen:.3f}")
