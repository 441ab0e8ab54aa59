"""ResNet-50 as PyTorch's users train it, on one batch on the device: a piece of benchmarks/gpu.py.

python gpu_step_torch.py JOB BATCH PIXELS

The peer of benchmarks/step_torch.py, in bfloat16 by autocast, eager and by torch.compile.
"""

import statistics

import numpy as np
import step_torch
from gpu_job import given

ROUNDS, UPDATES = 10, 10


def measure(job, how, training, loss_of):
    """Puts images/s of rounds, after some updates that compile."""
    cuda = training.torch.cuda if training.device == "cuda" else None
    if cuda:
        cuda.reset_peak_memory_stats()
    batch, size = len(training.images), training.images.shape[-1]
    compiling = training.seconds(1 if job.trial else 5, loss_of)
    rounds, updates = (1, 1) if job.trial else (ROUNDS, UPDATES)
    rates = [updates * batch / training.seconds(updates, loss_of) for _ in range(rounds)]
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
    if not step_torch.installed():
        return job.put("PyTorch", 0, skipped="torch is not installed")
    import torch

    if not job.trial and not torch.cuda.is_available():
        return job.put("PyTorch", 0, skipped=f"torch {torch.__version__} finds no GPU")
    batch, size = (2, 32) if job.trial else (int(batch), int(size))
    random, device = np.random.default_rng(0), "cpu" if job.trial else "cuda"
    images = random.integers(0, 256, (batch, size, size, 3), np.uint8)
    labels = random.integers(0, 1000, batch)
    training = step_torch.Training("resnet50", images, labels, "bfloat16", device)
    measure(job, "PyTorch, eager", training, training.loss)
    # A trial has no compiler for the CPU: what is compiled is traced, and then eager.
    compiled = torch.compile(training.loss, backend="aot_eager" if job.trial else "inductor")
    measure(job, "PyTorch, torch.compile", training, compiled)


if __name__ == "__main__":
    main()
