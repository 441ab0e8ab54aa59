"""Measures what an update of SP-NGD costs beside one of SGD with the same minibatch.

python benchmarks/second_order.py compile v5e:2x2     compiles ResNet-50 at 32 images a chip for
                                                      TPUs that need not be here, and counts
python benchmarks/second_order.py run                 times digits and ResNet-20 on this CPU
python benchmarks/second_order.py table               prints the tables

The first needs jax[tpu], and many minutes; `compile TOPOLOGY KIND ...` compiles some of three
programs: SGD, SP-NGD with all statistics due, and with none of them. Where each is refreshed in
every tenth update, an update costs a tenth of the second and nine tenths of the third. The compiler
counts what is in a loop once, as inversions are: what these do is added, by formula. And of a
condition it counts the dearer branch: where nothing is due, that one is made a cheap one.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import time
from unittest import mock

from lbsgd.optim.inversion import BLOCK
from lbsgd.workers.collectives.ownership import balance, sent

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "results" / "second_order.json"
EVERY, IMAGES, SHARE = 10, 32, 0.25
ROUNDS, WARM_UP = 15, 3
KINDS = ("sgd", "all due", "none due")


def with_flags(plan, kind: str):
    """Makes a plan whose statistics are all due, or none, whatever their intervals are."""
    if kind == "sgd":
        return plan
    import jax
    import jax.numpy as jnp

    from lbsgd.optim.preconditioner import Preconditioner

    class AtOnce(Preconditioner):
        def due(self, curvature, update_index):
            flags = super().due(curvature, update_index)
            return jax.tree.map(lambda _: jnp.bool(kind == "all due"), flags)

    made = plan.second_order.precondition
    second_order = plan.second_order._replace(precondition=AtOnce(made.sharing, made.ruled))
    return dataclasses.replace(plan, second_order=second_order)


def without_refreshes():
    """Replaces what is done where something is due by the writing of ones of its shapes."""
    import jax
    import jax.numpy as jnp

    from lbsgd.optim.refresh import Refresh

    condition = Refresh._in_turn

    def cheap(self, flags, compute, otherwise):
        shapes = jax.eval_shape(compute)
        ones = functools.partial(jax.tree.map, lambda x: jnp.ones(x.shape, x.dtype), shapes)
        return condition(self, flags, ones, otherwise)

    return mock.patch.object(Refresh, "_in_turn", cheap)


def imagenet_plan(kind: str, devices: int):
    """Plans ResNet-50 with 32 images a chip."""
    from ahead_of_time import plan_for

    from lbsgd.data.facts import Facts
    from lbsgd.run.config_file import ConfigFile

    config = ConfigFile("imagenet_spngd").config()
    config.model.name, config.data.running_mixup = "resnet50", 0.0
    config.batch_size, config.worker_batch_size, config.devices = IMAGES * devices, IMAGES, devices
    config.accumulation_steps = 1
    config.optimizer.fisher_share = SHARE
    if kind == "sgd":
        config.optimizer.name = "sgd"
    facts = Facts(1_281_167, 50_000, 1000, (224, 224, 3))
    return with_flags(plan_for(config, facts, devices), kind)


def compile_for(topology: str, kinds: tuple[str, ...]) -> None:
    """Compiles some or all for a topology, and counts."""
    from ahead_of_time import compile_update, counted, describe_compiler, devices_of

    devices = devices_of(topology)
    found = results().get("compiled", {}).get(topology, {})
    found |= {**describe_compiler(), "devices": len(devices)}
    for kind in kinds or KINDS:
        begun = time.monotonic()
        plan = imagenet_plan(kind, len(devices))
        with without_refreshes() if kind == "none due" else contextlib.nullcontext():
            found[kind] = counted(compile_update(plan, devices))
        found[kind]["compiled_in_s"] = round(time.monotonic() - begun, 1)
        if kind != "sgd":
            owners = owners_of(plan)
            # Numbers that cross where XLA makes reduce-scatters, and what its loops do.
            found["explained"] = {**sent(owners)._asdict(), "balance": balance(owners)}
            found["inversions"] = inversions(owners)
        print(kind, found[kind], flush=True)
        save("compiled", topology, found)


def owners_of(plan) -> list:
    """Lists how the layers of all stacks are shared out."""
    return [stack.owner for stack in plan.second_order.precondition.sharing.stacks.values()]


def inversions(owners) -> dict:
    """Counts operations and bytes, read and written, of the loops of a device where all is due."""
    flops = byte_count = 0
    for o in owners:
        flops += o.inversion_flops()
        for d, rows in ((o.long, o.width if o.inverts_together else o.long), (o.short, o.short)):
            # Of each block the matrix is read and written once, and three panels twice.
            byte_count += o.per_group * -(-d // BLOCK) * 4 * (2 * rows * d + 6 * BLOCK * d)
    return {"flops": flops, "bytes": byte_count}


def results() -> dict:
    """Reads what is measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def save(part: str, name: str, found: dict) -> None:
    """Puts a result among the others."""
    found_so_far = results()
    found_so_far.setdefault(part, {})[name] = found
    RESULTS.write_text(json.dumps(found_so_far, indent=1) + "\n")


# What is timed here: a config, its variant, and keys.
TIMED = {
    "digits, ResNet-8": ("digits_spngd", {}),
    "CIFAR-10 size, ResNet-20": (
        "cifar10_spngd",
        {
            "data.source": "synthetic",
            "data.image_size": 32,
            "data.synthetic_classes": 10,
            "data.synthetic_examples": 1024,
            "data.synthetic_validation_examples": 16,
            "data.synthetic_on_device": True,
            "batch_size": 256,
            "worker_batch_size": 32,
        },
    ),
}


def cpu_step(name: str, kind: str):
    """Compiles an update, and binds what it takes."""
    import numpy as np

    from lbsgd.run.build import build
    from lbsgd.run.config import resolve
    from lbsgd.run.config_file import ConfigFile
    from lbsgd.run.program import Program

    file, keys = TIMED[name]
    config = ConfigFile(file).config()
    config.update_from_flattened_dict({**keys, "devices": 1, "accumulation_steps": 1})
    config.optimizer.stale_threshold, config.optimizer.fisher_share = 0.1, SHARE
    if kind == "sgd":
        config.optimizer.name = "sgd"
    run = build(resolve(config))
    program = Program(with_flags(run.plan, kind))
    state = program.start()
    step = program.compile_train_step()
    batch = next(iter(run.feed.train_batches().between(0, 1)))
    numbers = program.numbers.at(0)

    def update():
        nonlocal state
        state, metrics = step(state, batch, numbers)
        return np.asarray(metrics["train_loss"])

    return update


def run() -> None:
    """Times all updates in turns."""
    from provenance import measured_on

    for name in TIMED:
        steps = {kind: cpu_step(name, kind) for kind in KINDS}
        times = {kind: [] for kind in KINDS}
        for i in range(WARM_UP + ROUNDS):
            for kind, update in steps.items():
                begun = time.perf_counter()
                update()
                if i >= WARM_UP:
                    times[kind].append(time.perf_counter() - begun)
        print(name, {kind: statistics.median(x) for kind, x in times.items()}, flush=True)
        save("timed", name, {"machine": measured_on(), "seconds": times})


def mean_of(sgd: float, all_due: float, none_due: float) -> float:
    """Computes the overhead where all are refreshed every tenth update, in percent of SGD."""
    update = all_due / EVERY + none_due * (EVERY - 1) / EVERY
    return 100 * (update / sgd - 1)


def table() -> str:
    """Makes the tables of all results."""
    from provenance import provenance

    found = results()
    lines = [
        f"| ResNet-50, {IMAGES} images a chip | | SGD | all due | none due | every {EVERY}th |",
        "|---|---|---|---|---|---|",
    ]
    for name, of in found.get("compiled", {}).items():
        lines += [f"| {name} | {text} |" for text in compiled_rows(of)]
    lines += [
        "",
        "| on a CPU | SGD, ms | all due | none due | every 10th |",
        "|---|---|---|---|---|",
    ]
    for name, of in found.get("timed", {}).items():
        row = [1e3 * statistics.median(of["seconds"][kind]) for kind in KINDS]
        lines.append(
            f"| {name} | " + " | ".join(f"{x:,.1f}" for x in row) + f" | {mean_of(*row):+.0f}% |"
        )
    rounds = {len(of["seconds"]["sgd"]) for of in found["timed"].values()}
    return "\n".join([*lines, "", provenance(found["timed"], *rounds)])


def compiled_rows(found: dict) -> list[str]:
    """Makes the rows of a topology, without its name."""
    rows, more = [], found["inversions"]
    for key, unit in (("flops", "GFLOP"), ("bytes", "GB read and written")):
        row = [found[kind][key] + more[key] * (kind == "all due") for kind in KINDS]
        cells = [f"{x / 1e9:,.1f}" for x in row] + [f"{mean_of(*row):+.1f}%"]
        rows.append(f"{unit} | " + " | ".join(cells))
    memory = [
        (found[kind]["temporary_bytes"] + found[kind]["argument_bytes"]) / 1e9 for kind in KINDS
    ]
    rows.append("GB of memory | " + " | ".join(f"{x:,.2f}" for x in memory) + " | ")
    return rows


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["compile", topology, *kinds]:
            compile_for(topology, tuple(kinds))
        case ["run"]:
            run()
        case ["table"]:
            pass
        case _:
            sys.exit(__doc__)
    print(table())
