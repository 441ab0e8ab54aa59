"""One update against the ordinary ways to write it: images/s beside plain Flax and PyTorch.

    python benchmarks/step.py run                    measures and writes docs/results/step.json
    python benchmarks/step.py run resnet18 [...]     the cases of some networks alone
    python benchmarks/step.py table                  prints the table from it

The peers are what one writes by hand for one device. Plain Flax: a network of nn.Conv and
nn.BatchNorm, one batch, jax.value_and_grad, optax.sgd. On a CPU also PyTorch, eager and
channels_last, on all cores (step_torch.py); without torch it is left out. Their batch norm sees the
whole minibatch. lbsgd computes the same network for k workers. All take turns in one process on the
same images; a round's ratio is of neighbours in time.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import step_torch
from command import run_or_table
from flax import linen as nn
from provenance import measured_on, provenance
from step_torch import BLOCKS, DECAY, LEARNING_RATE, MOMENTUM
from synthetic import synthetic_config

from lbsgd.run.build import build
from lbsgd.run.config import resolve

RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results" / "step.json"
ROUNDS = 15

# Network, image size, kn, n, compute type: what a CPU can do, then what wants an accelerator.
CASES = [
    ("cifar_resnet8", 8, 256, 32, "float32"),
    ("cifar_resnet20", 32, 128, 32, "float32"),
    ("resnet18", 64, 32, 8, "float32"),
    ("resnet50", 224, 16, 16, "float32"),
]
ACCELERATOR_CASES = [
    ("cifar_resnet20", 32, 1024, 32, "bfloat16"),
    ("resnet50", 224, 256, 32, "bfloat16"),
    ("resnet50", 224, 256, 256, "bfloat16"),
]


class PlainResNet(nn.Module):
    """The same layers, as the Flax examples write them."""

    name_of: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        small, bottleneck = self.name_of.startswith("cifar"), self.name_of == "resnet50"

        def conv(x, features, kernel, stride=1):
            pad = ((kernel // 2,) * 2,) * 2
            return nn.Conv(features, (kernel,) * 2, stride, pad, use_bias=False, dtype=self.dtype)(
                x
            )

        def norm(x):
            return nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.dtype)(x)

        width = 16 if small else 64
        x = nn.relu(norm(conv(x, width, 3) if small else conv(x, width, 7, 2)))
        if not small:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(BLOCKS[self.name_of]):
            for i in range(blocks):
                features, stride = width * 2**stage, 2 if stage and not i else 1
                out = features * (4 if bottleneck else 1)
                if bottleneck:
                    y = nn.relu(norm(conv(x, features, 1)))
                    y = norm(conv(nn.relu(norm(conv(y, features, 3, stride))), out, 1))
                else:
                    y = norm(conv(nn.relu(norm(conv(x, features, 3, stride))), out, 3))
                if x.shape != y.shape and small:
                    x = jnp.pad(x[:, ::2, ::2], ((0, 0),) * 3 + ((0, out - x.shape[-1]),))
                elif x.shape != y.shape:
                    x = norm(conv(x, out, 1, stride))
                x = nn.relu(x + y)
        return nn.Dense(1000)(x.mean((1, 2)).astype(jnp.float32))


def plain_update(name, dtype, axis=None):
    """The peer's functions: one image -> the first state; (state, images, labels) -> state, loss.

    With the name of an axis of devices it is for use within `jax.shard_map`: each has a batch of
    its own, for batch norm too, and the means of what comes of it are over all of them.
    """
    model = PlainResNet(name, jnp.dtype(dtype))
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM, nesterov=True)

    def normalized(images):
        return (images.astype(jnp.float32) / 255.0 - 0.5) / 0.5

    def start(image):
        variables = model.init(jax.random.key(0), normalized(image))
        return variables["params"], variables["batch_stats"], optimizer.init(variables["params"])

    def step(state, images, labels):
        params, stats, opt_state = state

        def loss(params):
            logits, left = model.apply(
                {"params": params, "batch_stats": stats}, normalized(images), mutable="batch_stats"
            )
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            l2 = sum(jnp.vdot(w, w) for w in jax.tree.leaves(params) if w.ndim > 1)
            return entropy.mean() + 0.5 * DECAY * l2, left["batch_stats"]

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        if axis:
            gradient, value, stats = jax.lax.pmean((gradient, value, stats), axis)
        changes, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, changes), stats, opt_state), value

    return start, step


def plain_step(name, dtype, images, labels):
    """The peer's compiled step and its first state."""
    start, step = plain_update(name, dtype)
    state = jax.jit(start)(images[:1])
    compiled = jax.jit(step, donate_argnums=0).lower(state, images, labels).compile()
    return compiled, state


def our_step(name, size, batch_size, worker_batch_size, dtype, **keys):
    """lbsgd's parts of a run, its compiled step, first state and batch.

    Args:
      keys: of the config besides.
    """
    own = {"accumulation_steps": 1, **keys}
    config = synthetic_config(name, size, batch_size, worker_batch_size, dtype, **own)
    parts = build(resolve(config))
    state = parts.program.start()
    batch = next(parts.feed.train_batches().between(0, 1))
    return parts, parts.program.compile_train_step(), state, batch


@dataclasses.dataclass
class Running:
    """A compiled step, its state after the last update, and what else it is given."""

    compiled: jax.stages.Compiled
    state: Any
    inputs: tuple[Any, ...]

    def seconds(self, updates):
        """The time of some updates."""
        start = time.perf_counter()
        for _ in range(updates):
            self.state, out = self.compiled(self.state, *self.inputs)
        jax.block_until_ready(out)
        return time.perf_counter() - start


def compile_all(name, size, batch_size, worker_batch_size, dtype):
    """lbsgd's step, the plain one and on a CPU PyTorch's, on the same images."""
    parts, ours, our_state, batch = our_step(name, size, batch_size, worker_batch_size, dtype)
    images = np.asarray(batch["image"]).reshape(batch_size, size, size, 3)
    labels = np.asarray(batch["label"]).reshape(batch_size)
    inputs = jnp.asarray(images), jnp.asarray(labels)
    peers, peer_state = plain_step(name, dtype, *inputs)
    runs = {
        "lbsgd": Running(ours, our_state, (batch, parts.program.numbers.at(0))),
        "plain": Running(peers, peer_state, inputs),
    }
    if jax.default_backend() == "cpu" and step_torch.installed():
        runs["torch"] = step_torch.Training(name, images, labels, dtype)
    return runs


def take_turns(runs, batch_size, rounds):
    """Images/s of each in every round."""
    rates = {key: [] for key in runs}
    repeats = 1
    for attempt in range(rounds + 2):
        seconds = {key: run.seconds(repeats) for key, run in runs.items()}
        if attempt == 1:  # long enough to time, after a first round to warm up
            repeats = max(1, round(0.3 / seconds["lbsgd"]))
        elif attempt > 1:
            for key, rate in rates.items():
                rate.append(repeats * batch_size / seconds[key])
    return rates


def run(*networks):
    """Measures the cases that this machine is for, all or those of some networks."""
    backend = jax.default_backend()
    cases = CASES if backend == "cpu" else ACCELERATOR_CASES
    unknown = set(networks) - {case[0] for case in cases}
    if unknown:
        sys.exit(
            f"no case of {', '.join(sorted(unknown))}; there are {[case[0] for case in cases]}"
        )
    cases = [case for case in cases if not networks or case[0] in networks]
    if backend == "cpu" and not step_torch.installed():
        print(step_torch.MISSING)
    for case in cases:
        rates = take_turns(compile_all(*case), case[2], ROUNDS)
        print(case, {key: round(statistics.median(value)) for key, value in rates.items()})
        store({"case": case, "n": ROUNDS, "rates": rates, "machine": measured_on()})


def store(result):
    """Puts a case into the results, in place of what they have of it, in the order of cases."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    by_case = {tuple(r["case"]): r for r in results} | {tuple(result["case"]): result}
    kept = [by_case[case] for case in (*CASES, *ACCELERATOR_CASES) if case in by_case]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def table():
    """Median images/s and the median and range of the rounds' ratios, as Markdown."""
    head = "| network | pixels | kn | n | type | device | lbsgd img/s | plain Flax img/s "
    head += "| of plain Flax's | PyTorch img/s | of PyTorch's |"
    results = json.loads(RESULTS.read_text())
    lines = [head, "|---" * 11 + "|"]
    for result in results:
        rates = result["rates"]
        cells = [*result["case"], result["machine"]["device"], shown(rates["lbsgd"])]
        for peer in ("plain", "torch"):
            cells += against(rates["lbsgd"], rates[peer]) if peer in rates else ["", ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", provenance(results, *(result["n"] for result in results))])


def shown(rates):
    """Their median, to three digits at least."""
    rate = statistics.median(rates)
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def against(ours, peers):
    """A peer's images/s, and ours as a part of them in the same round: median and range."""
    ratios = [a / b for a, b in zip(ours, peers)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [shown(peers), spread]


if __name__ == "__main__":
    run_or_table(__doc__, run, table, arguments=max(0, len(sys.argv) - 2))
