"""Compares the estimate of a step's memory with what the compiled step needs.

python benchmarks/step_memory.py run      measures and writes docs/results/step_memory.json
python benchmarks/step_memory.py table    prints the table from docs/results/step_memory.json
"""

import json
import pathlib

from command import run_or_table

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "results" / "step_memory.json"
# Network, image size, n, k, and other keys.
STEPS = (
    ("cifar_resnet8", 32, 32, 2, {}),
    ("cifar_resnet20", 32, 32, 4, {}),
    ("cifar_resnet20", 32, 32, 4, {"accumulation_steps": 2}),
    ("cifar_resnet8", 32, 64, 2, {"model.normalization": "group"}),
    ("resnet18", 64, 16, 2, {}),
    ("resnet50", 64, 8, 2, {}),
)


def measure(name: str, size: int, n: int, k: int, keys: dict) -> dict:
    """Estimates and compiles one step for one device."""
    from lbsgd.run.build import build
    from lbsgd.run.config import default_config, resolve
    from lbsgd.run.fitting import MINIBATCHES, batch_bytes, estimated_memory
    from lbsgd.workers.fit import memory_of

    config = default_config()
    config.update({"batch_size": n * k, "worker_batch_size": n, "devices": 1, "total_steps": 1})
    config.update({"model": {"name": name}, "learning_rate": {"warmup": "none"}})
    config.data.update({"source": "synthetic", "image_size": size, "synthetic_classes": 10})
    config.data.update({"synthetic_examples": 512, "synthetic_validation_examples": 8})
    config.update_from_flattened_dict(keys)
    run = build(resolve(config))
    placement = run.plan.placement
    batch = batch_bytes(run.plan, placement)
    return {
        "network": name,
        "image_size": size,
        "n": n,
        "lanes": placement.lanes,
        "accumulation_steps": placement.accumulation_steps,
        "keys": keys,
        "estimated_bytes": estimated_memory(run.plan)(placement) - MINIBATCHES * batch,
        "compiled_bytes": memory_of(run.program.compile_train_step(), batch),
    }


def run() -> None:
    """Measures all steps."""
    from provenance import measured_on

    found = {"machine": measured_on(), "steps": [measure(*step) for step in STEPS]}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def table() -> str:
    """Estimate and compilation of each step, in MiB."""
    from provenance import provenance

    found = json.loads(RESULTS.read_text())
    lines = ["| step on one device | estimated MiB | compiled MiB | ratio |", "|---|---|---|---|"]
    for step in found["steps"]:
        keys = "".join(f", {k}={v}" for k, v in step["keys"].items())
        what = f"{step['network']} at {step['image_size']}, {step['lanes']} lanes of {step['n']}"
        a, b = step["estimated_bytes"], step["compiled_bytes"]
        lines.append(f"| {what}{keys} | {a / 2**20:,.1f} | {b / 2**20:,.1f} | {a / b:.2f} |")
    source = f"{len(found['steps'])} steps, once each; {provenance(found)}"
    return "\n".join([*lines, "", source])


if __name__ == "__main__":
    run_or_table(__doc__, run, table)
