"""ResNet-50 as PyTorch's users train it, on one batch on the device: a piece of benchmarks/gpu.py.

python gpu_step_torch.py JOB BATCH PIXELS

channels_last, bfloat16 by autocast, a fused SGD, eager and by torch.compile. Bytes go in and are
normalized in the step, as in benchmarks/step.py.
"""

import importlib.util
import statistics
import time

from gpu_job import given

ROUNDS, UPDATES = 10, 10


def build_network():
    """ResNet-50 in its usual form, the stride in the 3x3 convolution."""
    import torch
    from torch import nn

    def conv(before, after, kernel, stride=1):
        layer = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(after))

    class Bottleneck(nn.Module):
        def __init__(self, before, width, stride):
            super().__init__()
            out = 4 * width
            self.one, self.two = conv(before, width, 1), conv(width, width, 3, stride)
            self.three = conv(width, out, 1)
            changes = stride > 1 or before != out
            self.short = conv(before, out, 1, stride) if changes else nn.Identity()

        def forward(self, x):
            y = torch.relu(self.two(torch.relu(self.one(x))))
            return torch.relu(self.three(y) + self.short(x))

    layers, before = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate((3, 4, 6, 3)):
        for i in range(count):
            layers.append(Bottleneck(before, 64 * 2**stage, 2 if stage and not i else 1))
            before = 256 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))


class Training:
    """The network, its optimizer and a batch."""

    def __init__(self, device, batch, size):
        import torch

        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        self.device, self.torch = device, torch
        self.model = build_network().to(device, memory_format=torch.channels_last).train()
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 5e-5}, {"params": rest, "weight_decay": 0.0}]
        fused = device == "cuda"
        self.optimizer = torch.optim.SGD(groups, 0.01, momentum=0.9, nesterov=True, fused=fused)
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 1000, (batch,), device=device)

    def loss(self, images, labels):
        """The mean loss of the batch."""
        x = (images.float() / 255.0 - 0.5) / 0.5
        with self.torch.autocast(self.device, self.torch.bfloat16):
            logits = self.model(x)
        return self.torch.nn.functional.cross_entropy(logits.float(), labels)

    def seconds(self, loss_of, updates):
        """The time of some updates."""
        start = time.perf_counter()
        for _ in range(updates):
            loss_of(self.images, self.labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter() - start


def measure(job, how, training, loss_of):
    """Puts images/s of rounds, after some updates that compile."""
    cuda = training.torch.cuda if training.device == "cuda" else None
    if cuda:
        cuda.reset_peak_memory_stats()
    batch, size = len(training.images), training.images.shape[-1]
    compiling = training.seconds(loss_of, 1 if job.trial else 5)
    rounds, updates = (1, 1) if job.trial else (ROUNDS, UPDATES)
    rates = [updates * batch / training.seconds(loss_of, updates) for _ in range(rounds)]
    job.put(
        how,
        rounds,
        case=("resnet50", size, batch, batch, "bfloat16"),
        rates=rates,
        images_per_second=statistics.median(rates),
        compile_seconds=compiling,
        peak_bytes=cuda.max_memory_allocated() if cuda else None,
        torch=training.torch.__version__,
        torch_device=cuda.get_device_name() if cuda else "cpu",
    )


def main() -> None:
    """Measures eager, then compiled."""
    job, (batch, size) = given()
    if not importlib.util.find_spec("torch"):
        return job.put("PyTorch", 0, skipped="torch is not installed")
    import torch

    if not job.trial and not torch.cuda.is_available():
        return job.put("PyTorch", 0, skipped=f"torch {torch.__version__} finds no GPU")
    batch, size = (2, 32) if job.trial else (int(batch), int(size))
    training = Training("cpu" if job.trial else "cuda", batch, size)
    measure(job, "PyTorch, eager", training, training.loss)
    # A trial has no compiler for the CPU: what is compiled is traced, and then eager.
    compiled = torch.compile(training.loss, backend="aot_eager" if job.trial else "inductor")
    measure(job, "PyTorch, torch.compile", training, compiled)


if __name__ == "__main__":
    main()
