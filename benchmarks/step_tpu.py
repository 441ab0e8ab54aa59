"""Counts what TPUs' compiler makes of an update: operations, bytes, memory, when it exchanges.

python benchmarks/step_tpu.py run v5e:2x2         compiles ResNet-50 at 256 images a chip, for TPUs
                                                  that need not be here, and counts
python benchmarks/step_tpu.py run v5e:2x2 plain   compiles one of the programs alone, or several:
                                                  plain, n=256, "n=256 without options", n=32
python benchmarks/step_tpu.py table               prints the table

The first two need jax[tpu] (`ahead_of_time.py` says how) and minutes for each program. The peer is
that of step.py, within `jax.shard_map` and with `lax.pmean`, compiled as it is.
"""

import json
import pathlib
import sys
import time

from provenance import commit

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "results" / "step_tpu.json"
IMAGES, PIXELS, DTYPE = 256, 224, "bfloat16"
PROGRAMS = ("plain", "n=256", "n=256 without options", "n=32")


def compile_plain(devices: list):
    """The peer's update, on all chips."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
    from step import plain_update

    from lbsgd.run.layout import sharded

    start, step = plain_update("resnet50", DTYPE, "chips")
    mesh = Mesh(np.array(devices).reshape(-1), ("chips",), axis_types=(AxisType.Auto,))
    whole, split = PartitionSpec(), PartitionSpec("chips")
    # Without the check of JAX that would sum the gradient of replicated parameters by itself.
    on_chips = jax.shard_map(
        step, mesh=mesh, in_specs=(whole, split, split), out_specs=whole, check_vma=False
    )
    count = IMAGES * len(devices)
    images = jax.ShapeDtypeStruct((count, PIXELS, PIXELS, 3), np.uint8)
    labels = jax.ShapeDtypeStruct((count,), np.int32)
    state = jax.eval_shape(start, jax.ShapeDtypeStruct((1, *images.shape[1:]), np.uint8))
    given = sharded((images, labels), NamedSharding(mesh, split))
    state = sharded(state, NamedSharding(mesh, whole))
    return jax.jit(on_chips, donate_argnums=0).lower(state, *given).compile()


def compile_ours(devices: list, n: int, options: dict | None):
    """lbsgd's update, of workers of n images."""
    from ahead_of_time import compile_update, plan_for
    from synthetic import synthetic_config

    from lbsgd.data.facts import given_facts

    count = len(devices)
    config = synthetic_config("resnet50", PIXELS, IMAGES * count, n, DTYPE, devices=count)
    return compile_update(plan_for(config, given_facts(config.data), count), devices, options)


def compile_program(name: str, devices: list):
    """Compiles one of the programs."""
    if name == "plain":
        return compile_plain(devices)
    size, _, without = name.removeprefix("n=").partition(" ")
    return compile_ours(devices, int(size), {} if without else None)


def run(topology: str, names: tuple[str, ...]) -> None:
    """Compiles programs for a topology, and keeps what is counted of each."""
    from ahead_of_time import counted, describe_compiler, devices_of
    from scheduled_hlo import moved_bytes, overlap

    # Before the results are written, which git would call a change.
    devices, compiler = devices_of(topology), describe_compiler()
    for name in names:
        begun = time.monotonic()
        compiled = compile_program(name, devices)
        text = compiled.as_text()
        found = {**counted(compiled), "moved_bytes": moved_bytes(text), **overlap(text)}
        found |= {"devices": len(devices), "compiled_in_s": round(time.monotonic() - begun, 1)}
        print(topology, name, found, flush=True)
        results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        results.setdefault(topology, {})[name] = {**found, **compiler}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table() -> str:
    """Makes the table of all results."""
    lines = [
        "| chips | update | GFLOP/image | MB/image, counted | MB/image, by the schedule "
        "| temporary GB | all-reduces | begin early | asynchronous |",
        "|---" * 9 + "|",
    ]
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for topology, programs in results.items():
        for name in filter(programs.get, PROGRAMS):
            found = programs[name]
            sent = found["all_reduced_bytes"]
            cells = [
                topology,
                "plain Flax" if name == "plain" else f"lbsgd, {name}",
                f"{found['flops'] / IMAGES / 1e9:.1f}",
                f"{found['bytes'] / IMAGES / 1e6:.0f}",
                f"{found['moved_bytes'] / IMAGES / 1e6:.0f}",
                f"{found['temporary_bytes'] / 1e9:.2f}",
                f"{found['all_reduces']}",
                *(f"{100 * found[f'{x}_bytes'] / sent:.0f}%" for x in ("early", "asynchronous")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    compiled = [found for programs in results.values() for found in programs.values()]
    with_what = sorted({f"jax {found['jax']}, libtpu {found['libtpu']}" for found in compiled})
    commits = sorted({commit(found["commit"]) for found in compiled})
    return "\n".join([*lines, "", f"{'; '.join(with_what)}; commits {', '.join(commits)}."])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", topology, *names] if set(names) <= set(PROGRAMS):
            run(topology, tuple(names) or PROGRAMS)
        case ["table"]:
            pass
        case _:
            sys.exit(__doc__)
    print(table())
