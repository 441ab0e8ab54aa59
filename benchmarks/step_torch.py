"""The step of benchmarks/step.py as PyTorch's users write it: channels_last, eager.

The network, the loss and the optimizer are the same: cross entropy, SGD with Nesterov momentum,
decay of kernels alone. Bytes go in and are normalized in the step. Its batch norm sees the whole
minibatch. torch is imported when it is asked for: without it there is no such peer.
"""

import importlib.util
import os
import time

MISSING = "PyTorch is not installed: there is no such peer (pip install torch==2.13.0)"
LEARNING_RATE, MOMENTUM, DECAY = 0.1, 0.9, 1e-4

# Blocks of each stage. CIFAR's have shortcuts without parameters, ResNet-50 has bottlenecks.
BLOCKS = {
    "cifar_resnet8": (1, 1, 1),
    "cifar_resnet20": (3, 3, 3),
    "resnet18": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
}


def installed():
    """Tells whether PyTorch is there, without importing it."""
    return importlib.util.find_spec("torch") is not None


def build_network(name, classes=1000):
    """A residual network in its usual form, the stride in a bottleneck's 3x3 convolution."""
    import torch
    from torch import nn

    small, bottleneck = name.startswith("cifar"), name == "resnet50"

    def conv(before, after, kernel, stride=1):
        layer = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(after))

    class Padded(nn.Module):
        """Every second pixel, and zero channels."""

        def forward(self, x):
            return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))

    class Block(nn.Module):
        def __init__(self, before, width, out, stride):
            super().__init__()
            if bottleneck:
                kernels = (before, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)
            else:
                kernels = (before, width, 3, stride), (width, out, 3, 1)
            self.convs, self.short = nn.ModuleList(conv(*k) for k in kernels), nn.Identity()
            if stride > 1 or before != out:
                self.short = Padded() if small else conv(before, out, 1, stride)

        def forward(self, x):
            y = x
            for layer in self.convs[:-1]:
                y = torch.relu(layer(y))
            return torch.relu(self.convs[-1](y) + self.short(x))

    width = before = 16 if small else 64
    layers = [conv(3, width, 3), nn.ReLU()] if small else [conv(3, width, 7, 2), nn.ReLU()]
    layers += [] if small else [nn.MaxPool2d(3, 2, 1)]
    for stage, count in enumerate(BLOCKS[name]):
        for i in range(count):
            out = width * 2**stage * (4 if bottleneck else 1)
            layers.append(Block(before, width * 2**stage, out, 2 if stage and not i else 1))
            before = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class Training:
    """The network, its optimizer and a batch on a device.

    Args:
      images, labels: uint8 `[n, h, w, 3]` and integers `[n]`.
      dtype: of the computation; bfloat16 is by autocast, as usual.
    """

    def __init__(self, name, images, labels, dtype, device="cpu"):
        import torch

        self.device, self.torch, self.dtype = device, torch, getattr(torch, dtype)
        if device == "cpu":
            torch.set_num_threads(os.cpu_count() or 1)
        else:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(0)
        model = build_network(name).to(device, memory_format=torch.channels_last).train()
        self.model = model.double() if dtype == "float64" else model
        kernels = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
        keys = {"momentum": MOMENTUM, "nesterov": True, "fused": True}
        self.optimizer = torch.optim.SGD(groups, LEARNING_RATE, **keys)
        # Pixels `[n, h, w, 3]` seen as `[n, 3, h, w]` are channels_last.
        self.images = torch.tensor(images, device=device).permute(0, 3, 1, 2)
        self.labels = torch.tensor(labels, device=device, dtype=torch.int64)

    def loss(self, images, labels):
        """The mean loss of the batch."""
        autocast = self.dtype is self.torch.bfloat16
        x = images.to(self.torch.float32 if autocast else self.dtype)
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=autocast):
            logits = self.model((x / 255.0 - 0.5) / 0.5)
        return self.torch.nn.functional.cross_entropy(logits.to(x.dtype), labels)

    def update(self, loss_of=None):
        """Makes an update; returns the loss before it."""
        value = (loss_of or self.loss)(self.images, self.labels)
        value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value.detach()

    def seconds(self, updates, loss_of=None):
        """The time of some updates.

        Args:
          loss_of: in place of `loss`, as what is compiled of it.
        """
        start = time.perf_counter()
        for _ in range(updates):
            self.update(loss_of)
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter() - start
