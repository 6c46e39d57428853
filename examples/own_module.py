"""Mark a network of your own, which a DataLoader feeds, and test it. It writes the folder `marked` here."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sslguard

torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(1, 32, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 64))
network.eval()
images = (
    sslguard.open_data("cluttered-mnist-5k:train").take(range(1500)).float() / 127.5 - 1
)  # as the network wants them
loader = DataLoader(TensorDataset(images[:1000]), batch_size=64)

settings = {"mode": "head", "protocol": {"n_queries": 300}}
marked = sslguard.watermark(network, loader, out="marked", scheme="exact", settings=settings)
for name, suspect in (("marked", "marked/encoder"), ("clean", network)):
    print(f"{name}: {sslguard.verify('marked/key', suspect, images[1000:], alpha=1e-6).decision}")

# What you serve needs your own code and torch alone: your network, and the head that was written beside its weights.
head = torch.export.load("marked/encoder/head.pt2").module()
served = head(network(images[:8]), images[:8])
print(
    "the same without sslguard:", torch.allclose(served, torch.from_numpy(marked.encoder.embed(images[:8])), atol=1e-5)
)
