#!/usr/bin/python3
"""Records orders of PyTorch's DistributedSampler: python3 orders.py > orders.txt

A line: samples seed epoch world rank drop_last count sha256 first...
the sha256 is that of the whole list as little-endian 32-bit numbers; the first 8
of the list stand behind it, for people. Recorded with torch 1.13.1; the
algorithm is the same in later ones for less than 214,748,364 samples.
"""
import array
import hashlib

from torch.utils.data.distributed import DistributedSampler


def record(n, seed, epoch, world, rank, drop_last):
    s = DistributedSampler(range(n), num_replicas=world, rank=rank, seed=seed, drop_last=drop_last)
    s.set_epoch(epoch)
    order = list(s)
    digest = hashlib.sha256(array.array("I", order).tobytes()).hexdigest()
    print(n, seed, epoch, world, rank, int(drop_last), len(order), digest, *order[:8])


for n in (1, 2, 3, 10, 97, 623, 624, 625, 626, 1248, 1249, 4097, 60000):
    for seed, epoch in ((0, 0), (0, 1), (42, 0), (42, 7), (2**32 - 1, 0), (2**32 - 1, 1), (2**32 + 5, 3), (2**62, 99)):
        record(n, seed, epoch, 1, 0, False)
for n in (1, 5, 8, 9, 100, 4097):
    for world in (2, 3, 8, 16):
        for rank in sorted({0, 1, world - 1}):
            for drop_last in (False, True):
                record(n, 7, 2, world, rank, drop_last)
record(1281167, 0, 5, 1, 0, False)
record(1281167, 0, 89, 64, 63, False)
record(1281167, 3, 12, 8, 5, True)
