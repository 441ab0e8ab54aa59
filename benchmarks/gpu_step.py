"""One update on the GPU against a plain Flax step: a piece of benchmarks/gpu.py.

python gpu_step.py JOB NETWORK PIXELS KN N DTYPE

Model FLOPs are 6 a multiply-add of the forward pass (2 forwards, 4 backwards), as is usual; the
utilization (MFU) is of the card's published dense bfloat16 peak.
"""

import math
import statistics
import time

import jax
import jax.numpy as jnp
import step
from gpu_job import check_backend, given
from jax.extend.core import jaxprs_in_params

# Published dense bfloat16 FLOP/s, by a part of the device's name; the first that fits.
PEAKS = {
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
}
SIZES = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
SIZES += ("alias_size_in_bytes", "generated_code_size_in_bytes")
ROUNDS, EARLY_ROUNDS = 10, 3


def peak_of(device_kind):
    """FLOP/s, or None where it is not known."""
    return next((peak for part, peak in PEAKS.items() if part in device_kind), None)


def case_of(arguments, trial):
    """The case in the arguments; a tiny one in a trial, of one worker or several like it."""
    name, size, batch, worker, dtype = arguments
    if trial:
        return "cifar_resnet8", 16, 8, 8 if worker == batch else 4, dtype
    return name, int(size), int(batch), int(worker), dtype


def multiply_adds(jaxpr):
    """Of convolutions and products in a jaxpr, those within its calls too."""
    total = 0
    for eqn in jaxpr.eqns:
        out = math.prod(eqn.outvars[0].aval.shape)
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += out * math.prod(kernel) // features
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        total += sum(multiply_adds(inner) for inner in jaxprs_in_params(eqn.params))
    return total


def model_flops(name, size):
    """FLOPs of training on one image."""
    model = step.PlainResNet(name, jnp.dtype("float32"))
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def forward(variables, image):
        return model.apply(variables, image, mutable="batch_stats")[0]

    return 6 * multiply_adds(jax.make_jaxpr(forward)(variables, image).jaxpr)


def memory_of(compiled):
    """Bytes by what they are for, as XLA says."""
    memory = compiled.memory_analysis()
    return {key: getattr(memory, key) for key in SIZES if hasattr(memory, key)}


def summary(rates, flops):
    """Medians, the ratios of the rounds and the utilization, of images/s in each round."""
    ratios = [a / b for a, b in zip(rates["lbsgd"], rates["plain"])]
    medians = {key: statistics.median(values) for key, values in rates.items()}
    peak = peak_of(jax.devices()[0].device_kind)
    return {
        "images_per_second": medians,
        "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
        "model_flops": flops,
        "peak_flops": peak,
        "mfu": {key: rate * flops / peak if peak else None for key, rate in medians.items()},
    }


def compile_in_turn(name, size, batch_size, worker_batch_size, dtype):
    """lbsgd's step and then the plain one on the same images, each when it is asked for."""
    parts, ours, state, batch = step.our_step(name, size, batch_size, worker_batch_size, dtype)
    yield "lbsgd", step.Running(ours, state, (batch, parts.program.numbers.at(0)))
    images = jnp.asarray(batch["image"]).reshape(batch_size, size, size, 3)
    labels = jnp.asarray(batch["label"]).reshape(batch_size)
    peers, state = step.plain_step(name, dtype, images, labels)
    yield "plain", step.Running(peers, state, (images, labels))


def compile_each(job, case):
    """Both steps; what each needs is put before the next is compiled."""
    runs, start = {}, time.perf_counter()
    for key, run in compile_in_turn(*case):
        took, memory = time.perf_counter() - start, memory_of(run.compiled)
        job.put(f"compiled {key}", 1, case=case, compile_seconds=took, memory=memory)
        runs[key], start = run, time.perf_counter()
    return runs


def main() -> None:
    """Compiles both steps, puts what they need, and then how fast they are, early and at the end.

    Of the two the report has the later.
    """
    job, arguments = given()
    check_backend(job, jax.default_backend())
    case = case_of(arguments, job.trial)
    runs = compile_each(job, case)
    memory = {key: memory_of(run.compiled) for key, run in runs.items()}
    flops, rates = model_flops(case[0], case[1]), {key: [] for key in runs}
    early, rest = (1, 1) if job.trial else (EARLY_ROUNDS, ROUNDS - EARLY_ROUNDS)
    for rounds in (early, rest):
        for key, more in step.take_turns(runs, case[2], rounds).items():
            rates[key] += more
        stats = jax.devices()[0].memory_stats() or {}
        job.put(
            "step",
            len(rates["lbsgd"]),
            case=case,
            rates=rates,
            memory=memory,
            peak_bytes=stats.get("peak_bytes_in_use"),  # of both
            **summary(rates, flops),
        )


if __name__ == "__main__":
    main()
