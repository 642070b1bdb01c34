"""Run one explanation under a memory limit, and print by how much it raised the process's peak of resident memory."""

import gc
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import UNet
from torch import nn

import voxplain as vx
from voxplain.engine.incremental import Incremental
from voxplain.networks.resnet import resnet


class PooledUNet(nn.Module):
    """A U-Net's maps, averaged into scores."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(3, 4, 2, (8, 16, 32), (2, 2), norm="batch")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unet(x).mean((2, 3, 4))


def peak_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def scan(size: int) -> vx.Scan:
    data = np.random.default_rng(0).uniform(1, 2, (4, size, size, size)).astype(np.float32)
    return vx.Scan(data, vx.Grid((size,) * 3, np.eye(4)), ("a", "b", "c", "d"))


def main(network: str, method: str, engine: str, memory: str) -> None:
    torch.manual_seed(0)
    net = {"resnet": lambda: resnet(10, width=32, classes=2), "unet": PooledUNet}[network]()
    model = vx.Model(net.eval(), vx.Card(name=network, channels=("a", "b", "c", "d"), classes=("x", "y")))

    def explain(size: int, memory: str) -> vx.Explanation:
        edge = size / 2
        methods = {
            "relevance-map": vx.RelevanceMap(partition=f"cubes:{edge}", mask="none"),
            "lime": vx.LIME(partition=f"cubes:{edge}", samples=12, mask="none"),
            "rise": vx.RISE(cell=edge, samples=12, mask="none"),
        }
        return methods[method](model, scans[size], compute=vx.Compute("cpu", engine=engine, memory=memory, threads=1))

    scans = {size: scan(size) for size in (32, 64)}
    explain(32, "2GB")  # what libraries load on their first use
    sizes: list[int] = []
    net.register_forward_hook(lambda _module, _inputs, output: sizes.append(len(output)))
    follow = Incremental.follow
    Incremental.follow = lambda self, patches: (sizes.append(len(patches)), follow(self, patches))[1]
    gc.collect()
    before = peak_bytes()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        explain(64, memory)
    notices = [str(warning.message) for warning in said]
    print(json.dumps({"used": peak_bytes() - before, "at_a_time": max(sizes), "notices": notices}))


if __name__ == "__main__":
    main(*sys.argv[1:])
