"""Measures what accumulation costs on the GPU: a piece of benchmarks/gpu.py.

python gpu_accumulation.py JOB NETWORK PIXELS KN N DTYPE

The minibatch in one step and in several, in turns, as benchmarks/accumulation.py has it.
"""

import accumulation
import jax
from gpu_job import check_backend, given
from gpu_step import case_of

STEPS, STEPS_IN_TRIAL = (1, 4), (1, 2)
ROUNDS, UPDATES = 10, 10


def main() -> None:
    """Measures the case."""
    job, arguments = given()
    check_backend(job, jax.default_backend())
    case = case_of(arguments, job.trial)
    rounds, updates = (1, 1) if job.trial else (ROUNDS, UPDATES)
    steps = STEPS_IN_TRIAL if job.trial else STEPS
    times, memory = accumulation.measure(case, steps, rounds, updates)
    job.put("accumulation", rounds, case=case, update_seconds=times, temporary_bytes=memory)


if __name__ == "__main__":
    main()
