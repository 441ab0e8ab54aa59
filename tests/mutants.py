"""Breaks each main promise by a change of a line or two, and shows that a short test notices.

    make mutants                               all, one after another
    python tests/mutants.py "synced" "LARS"    those whose promise has these words

Each is made in a copy of the tree, where the short tests named with it run until one fails. The
tests of an unbroken tree are `make test`. Ends with 1 where a mutant lives, or is no change.
"""

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parent.parent
# Of pytest, where tests ran and some failed; all else (no tests, an import that fails) is no proof.
FAILED = 1


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change that breaks a promise.

    Attributes:
      promise: what the README and docs/design.md say.
      file: in the package.
      old, new: text that stands there once, and what takes its place.
      tests: files or tests of which a short one is to fail.
    """

    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "synced batch norm is the same wherever its workers lie",
        "models/networks.py",
        'SYNCED_AXES = ("lane", "member")',
        'SYNCED_AXES = ("lane",)',
        ("tests/train/test_placement.py",),
    ),
    Mutant(
        "joined layers have the variance of the product, which is no mean of squares",
        "models/normalized_product.py",
        "second - jnp.outer(rest, rest)",
        "second",
        ("tests/models/test_normalized_product.py",),
    ),
    Mutant(
        "the kernel's gradient passes by the variance of the product too",
        "models/normalized_product.py",
        "(product - m * kept.cov_kernel * along(t, w))",
        "product",
        ("tests/models/test_normalized_product.py",),
    ),
    Mutant(
        "joined products of images are sums over all pixels",
        "models/normalized_product.py",
        'numbers = ("CHWN", "IHWO", "NHWC")',
        'numbers = ("CHWN", "OHWI", "NHWC")',
        ("tests/models/test_normalized_product.py",),
    ),
    Mutant(
        "where a scale is negative, joined pooling takes the least",
        "models/normalized_pool.py",
        "jnp.where(scale < 0, -jnp.ones_like(scale), jnp.ones_like(scale))",
        "jnp.ones_like(scale)",
        ("tests/models/test_normalized_pool.py",),
    ),
    Mutant(
        "synced batch norm is never joined with one worker's convolution",
        "models/convolutions.py",
        "isinstance(norm, BatchNorm) and not norm.axis_names",
        "isinstance(norm, BatchNorm)",
        ("tests/models/test_joined_networks.py",),
    ),
    Mutant(
        "statistics of curvature are of layers that are computed by themselves",
        "run/worker.py",
        'config.optimizer.name != "spngd"',
        'config.optimizer.name != "none"',
        ("tests/run/test_joining.py",),
    ),
    Mutant(
        "model.remat keeps of a block its input alone",
        "models/resnet.py",
        "if self.remat:",
        "if False:",
        ("tests/models/test_remat.py",),
    ),
    Mutant(
        "no number depends on idle slots",
        "step/reduction.py",
        "jnp.where(_along(real, x), x, 0)",
        "x",
        ("tests/train/test_placement.py",),
    ),
    Mutant(
        "each gradient byte is reduced once, outside the accumulation",
        "step/train_step.py",
        "return gradient_of(loss, params, trained)",
        "g, result = gradient_of(loss, params, trained)\n"
        "        return jax.lax.pmean(g, placement.batch_spec[1]), result",
        ("tests/train/test_placement.py",),
    ),
    Mutant(
        "statistics are averaged over all devices, whatever the all-reduce",
        "step/train_step.py",
        "return gradient_mean(gradients), *mean()",
        "return gradient_mean(gradients), result",
        ("tests/workers/collectives/test_training.py",),
    ),
    Mutant(
        "on CPUs the arrays of a type cross in one message",
        "step/reduction.py",
        'if platform != "cpu" or lax.axis_size',
        'if platform == "cpu" or lax.axis_size',
        ("tests/step/test_reductions.py",),
    ),
    Mutant(
        "what is drawn for a worker does not depend on where it lies",
        "workers/placement.py",
        "return self._slot_of_lane(step) % self.workers",
        "return self._slot_of_lane(step) % self.lanes",
        ("tests/step/test_reductions.py",),
    ),
    Mutant(
        "a metric is reduced over workers as its task declares",
        "step/reduction.py",
        'jnp.maximum if how == "max" else jnp.add',
        "jnp.add",
        ("tests/step/test_reductions.py",),
    ),
    Mutant(
        "a run with running mixup goes on elsewhere with the same minibatch",
        "step/running_mixup.py",
        "[: placement.workers]",
        "[-placement.workers :]",
        ("tests/step/test_running_mixup.py",),
    ),
    Mutant(
        "running mixup leaves examples as they are that have nothing before them",
        "step/running_mixup.py",
        "there = jnp.any(before.targets > 0, axis=-1)",
        "there = jnp.full(before.targets.shape[:-1], True)",
        ("tests/step/test_running_mixup.py",),
    ),
    Mutant(
        "statistics of curvature do not see idle lanes",
        "step/fisher.py",
        "a = jnp.where(real, inputs(), 0)",
        "a = inputs()",
        ("tests/step/test_sampled_labels.py",),
    ),
    Mutant(
        "statistics are means over the examples they are of",
        "step/fisher.py",
        "examples = placement.workers * fisher.examples",
        "examples = placement.batch_size",
        ("tests/step/test_sampled_labels.py",),
    ),
    Mutant(
        "pi shares the damping out between the two factors",
        "optim/natural.py",
        'pi if key == "A" else 1 / pi',
        'pi if key == "G" else 1 / pi',
        ("tests/optim/test_natural.py",),
    ),
    Mutant(
        "what is not due stays as it was refreshed",
        "optim/refresh.py",
        "jnp.where(due[:, None, None], new, x)",
        "new",
        ("tests/optim/test_preconditioner.py",),
    ),
    Mutant(
        "the intervals of stale statistics are those of Algorithm 2",
        "optim/stale.py",
        "grown = intervals.last + intervals.before",
        "grown = 2 * intervals.last",
        ("tests/optim/test_stale.py",),
    ),
    Mutant(
        "statistics are reduced to those that own them, and not to all",
        "workers/collectives/owned.py",
        "lax.psum_scatter(x, wire.axis, tiled=True)",
        "lax.psum(x, wire.axis).reshape(devices, -1, x.shape[1])[lax.axis_index(wire.axis)]",
        ("tests/train/test_second_order.py",),
    ),
    Mutant(
        "labels are sampled by worker and update",
        "step/worker.py",
        "jax.random.fold_in(worker_key(numbers, index), 2)",
        "jax.random.fold_in(jax.random.key(numbers.seed), 2)",
        ("tests/step/test_sampled_labels.py",),
    ),
    Mutant(
        "the code that a config names belongs to the run",
        "run/plan.py",
        "**run_keys(self.config), **of_code,",
        "**run_keys(self.config),",
        ("tests/test_bring_your_own.py",),
    ),
    Mutant(
        "the weights that a run starts from belong to it",
        "run/plan.py",
        "return whole | ({IDENTITY: self.weights.fingerprint} if self.weights else {})",
        "return whole",
        ("tests/train/test_init_from.py",),
    ),
    Mutant(
        "a head for other classes is drawn by the seed, all else is taken",
        "weights/matching.py",
        "return len(stored) == len(shape) and set(differ) <= set(axes)",
        "return len(stored) == len(shape)",
        ("tests/weights/test_matching.py",),
    ),
    Mutant(
        "a head is kept for the same classes in the same order alone",
        "weights/initial.py",
        "other_classes=bool(there and here) and there != here,",
        "other_classes=bool(there and here) and set(there) != set(here),",
        ("tests/train/test_init_from.py",),
    ),
    Mutant(
        "the best checkpoint of a metric that rises is that of its highest value",
        "run/record/metrics.py",
        "key=lambda t: (found[t] if rises else -found[t], t)",
        "key=lambda t: (-found[t], t)",
        ("tests/run/record/test_best.py", "tests/use/test_loading_networks.py"),
    ),
    Mutant(
        "nothing in a file of weights is executed",
        "weights/pytorch.py",
        "weights_only=True, mmap",
        "weights_only=False, mmap",
        ("tests/weights/test_weight_files.py",),
    ),
    Mutant(
        "running averages move once an update, by a tenth",
        "step/train_step.py",
        "m * r + (1.0 - m) * new if moments",
        "(1.0 - m) * r + m * new if moments",
        ("tests/step/test_step.py",),
    ),
    Mutant(
        "augmentation depends on seed, epoch and example alone",
        "data/pipeline.py",
        "draws = self.view.draw(rows.epochs, rows.examples)",
        "draws = self.view.draw(rows.epochs, np.arange(rows.examples.size))",
        ("tests/train/test_placement.py", "tests/data/test_pipeline.py"),
    ),
    Mutant(
        "another permutation in each epoch",
        "data/order.py",
        "keys = round_keys(self.seed, int(epoch), self.purpose)\n            examples",
        "keys = round_keys(self.seed, 0, self.purpose)\n            examples",
        ("tests/data/test_order.py",),
    ),
    Mutant(
        "each process loads the rows of its own slots",
        "workers/placement.py",
        "return slice(mine[0] * self.lanes, (mine[-1] + 1) * self.lanes)",
        "return slice(0, len(mine) * self.lanes)",
        ("tests/train/test_elastic.py",),
    ),
    Mutant(
        "warmup starts at the reference rate and grows with each update",
        "schedule/functions.py",
        "ramp = start_rate + (full_rate - start_rate)",
        "ramp = full_rate",
        ("tests/schedule/test_learning_rate.py",),
    ),
    Mutant(
        "momentum is corrected as the rate changes",
        "optim/momentum.py",
        "rate / jnp.where(usable, last, 1.0)",
        "last / jnp.where(usable, rate, 1.0)",
        ("tests/optim/test_momentum.py", "tests/optim/test_sgd_against_torch.py"),
    ),
    Mutant(
        "LARS has the decay in its trust ratio",
        "optim/layerwise.py",
        "below = of_g + in_type_of(of_w, weight_decay) * of_w + ",
        "below = of_g + ",
        ("tests/optim/test_lars.py",),
    ),
    Mutant(
        "in anyone's loop an optimizer counts its updates",
        "optim/rule.py",
        "optax.safe_increment(t)",
        "t",
        ("tests/optim/test_library.py",),
    ),
    Mutant(
        "an optimizer of a dotted name is told the rate of each update",
        "optim/stock.py",
        "make(learning_rate=learning_rate)",
        "make(learning_rate=jnp.ones(()))",
        ("tests/optim/test_stock.py",),
    ),
    Mutant(
        "evaluation counts each example once",
        "step/evaluation.py",
        "jnp.where(along, x, jnp.zeros_like(x))",
        "x",
        (
            "tests/step/test_step.py",
            "tests/step/test_step_functions.py",
            "tests/train/test_train.py",
        ),
    ),
    Mutant(
        "a stopped run goes on with the batch after its last",
        "train.py",
        "contextlib.closing(feed.training(done))",
        "contextlib.closing(feed.training(max(done - 1, 0)))",
        ("tests/train/test_train.py",),
    ),
    Mutant(
        "runs at once draw by their own seeds",
        "experiments/group.py",
        "[m.program.plan.config.seed for m in members]",
        "[first.plan.config.seed for m in members]",
        ("tests/experiments/test_together.py",),
    ),
    Mutant(
        "a sweep's folder has one runner at a time",
        "experiments/running/session.py",
        "            )\n        yield\n",
        "            )\n    yield\n",
        ("tests/experiments/running/test_session.py",),
    ),
    Mutant(
        "a run that fails is a row of its sweep, not the end",
        "experiments/running/training.py",
        "except (Exception, SystemExit) as error:  # of the code of others too",
        "except OSError as error:",
        ("tests/experiments/running/test_training_of_jobs.py",),
    ),
    Mutant(
        "a sweep that has been resumed reports what was complete before",
        "experiments/running/slurm.py",
        "self._look(run for run in job.runs if run.standing().status in OVER)",
        "self._look(())",
        ("tests/experiments/running/test_slurm_engine.py",),
    ),
    Mutant(
        "a run that diverged is in no mean, and is said",
        "experiments/table.py",
        "        if run.status is not Status.COMPLETE:\n            found.setdefault",
        "        if run.status is Status.MISSING:\n            found.setdefault",
        ("tests/experiments/test_table.py",),
    ),
    Mutant(
        "rows are compared by Welch's t",
        "experiments/statistics.py",
        "sum(variances) ** 2 / sum(v**2 / (s.n - 1) for v, s in zip(variances, (a, b)))",
        "a.n + b.n - 2",
        ("tests/experiments/test_statistics.py",),
    ),
    Mutant(
        "runs share only programs of the same text",
        "run/sharing.py",
        "return digest, arguments, trees,",
        "return arguments, trees,",
        ("tests/run/test_sharing.py",),
    ),
    Mutant(
        "updates are compiled with the compiler's options",
        "run/program.py",
        "return SHARED.compile(self.lower_train_step(*key), out, self.step_options)",
        "return SHARED.compile(self.lower_train_step(*key), out)",
        ("tests/workers/test_compiler.py",),
    ),
    Mutant(
        "seeds at once are compiled with the compiler's options",
        "experiments/joint.py",
        "return SHARED.compile(lowered, out, self.program.step_options)",
        "return SHARED.compile(lowered, out)",
        ("tests/workers/test_compiler.py",),
    ),
    Mutant(
        "an option that the compiler does not take is left out",
        "workers/compiler.py",
        "if refused is None:",
        "if refused:",
        ("tests/workers/test_compiler.py",),
    ),
    Mutant(
        "all-reduces are joined up to the size of a bucket",
        "workers/compiler.py",
        "int(topology.bucket_mib(allreduce) * 2**20)",
        "int(allreduce.bucket_mib * 2**20)",
        ("tests/workers/test_compiler.py",),
    ),
    Mutant(
        "no call goes past an evaluation",
        "run/calls.py",
        "ends = plan.evaluate_after | plan.save_after",
        "ends = plan.save_after",
        ("tests/run/test_calls.py",),
    ),
    Mutant(
        "each update of a call takes its own rate",
        "run/numbers.py",
        "for update in range(first, first + count)]",
        "for update in [first] * count]",
        ("tests/train/test_updates_per_call.py",),
    ),
    Mutant(
        "each update of a call has its own minibatch",
        "data/pipeline.py",
        "for t in range(update, update + stacked))",
        "for t in [update] * stacked)",
        ("tests/train/test_updates_per_call.py",),
    ),
    Mutant(
        "the next start finds what this one has compiled",
        "system/cache.py",
        "os.environ[_FOLDER] = str(folder)",
        "os.environ[_WHETHER] = '1'",
        ("tests/system/test_cache.py",),
    ),
    Mutant(
        "no compiled program is run that others can have written",
        "system/cache.py",
        "own = found.st_uid == os.geteuid() and not found.st_mode & 0o022",
        "own = found.st_uid == os.geteuid()",
        ("tests/system/test_cache.py",),
    ),
    Mutant(
        "the user's own compilation cache is left alone",
        "system/cache.py",
        "    if _FOLDER in os.environ:\n        return True\n",
        "",
        ("tests/system/test_cache.py",),
    ),
    Mutant(
        "a checkpoint is believed only when its checksums are right",
        "checkpoint/manifest.py",
        "if array_checksum(name, array) != entry.sha256:",
        "if not entry.sha256:",
        ("tests/checkpoint/test_damaged_files.py", "tests/checkpoint/test_restoring.py"),
    ),
    Mutant(
        "a run that has reached its target is complete",
        "train.py",
        "at_target = _was_at_target(plan, record) if state else False",
        "at_target = False",
        ("tests/train/test_stop_at.py",),
    ),
    Mutant(
        "what decides on all arrays is compiled once",
        "step/train_step.py",
        "jnp.sqrt(jnp.all(jnp.stack(each)).astype(jnp.float32)) > 0",
        "jnp.all(jnp.stack(each))",
        ("tests/step/test_all_finite.py",),
    ),
    Mutant(
        "an update that is not finite changes nothing",
        "step/train_step.py",
        "lambda new, old: jnp.where(finite, new, old), changed, kept",
        "lambda new, old: new, changed, kept",
        ("tests/step/test_step.py", "tests/train/test_train.py"),
    ),
    Mutant(
        "a sink that fails is a line, never the end of a run",
        "run/record/sinks/opening.py",
        "except Exception as error:",
        "except ImportError as error:",
        ("tests/run/record/sinks/test_opening.py",),
    ),
    Mutant(
        "TensorBoard shows each step of a run that resumed once",
        "run/record/sinks/tensorboard.py",
        "step=start + 1, session_log=log",
        "step=start + 10**6, session_log=log",
        ("tests/run/record/sinks/test_tensorboard.py",),
    ),
    Mutant(
        "the CPU's forms give the sums of a plain convolution: the kernel's gradient",
        "step/cpu_convolutions.py",
        "shifts = [(j - left) // right for j in columns]",
        "shifts = [(j - left + 1) // right for j in columns]",
        ("tests/step/test_cpu_forms.py",),
    ),
    Mutant(
        "the CPU's forms give the sums of a plain convolution: the input's gradient",
        "step/cpu_convolutions.py",
        "first = (lo - a) % s",
        "first = (lo + a) % s",
        ("tests/step/test_cpu_forms.py",),
    ),
    Mutant(
        "sums of 16 bits are taken in 32 in the CPU's forms",
        "step/cpu_convolutions.py",
        "x.dtype if x.dtype.itemsize > 2 else jnp.dtype(jnp.float32)",
        "x.dtype",
        ("tests/step/test_cpu_forms.py",),
    ),
    Mutant(
        "the CPU's forms of max pooling take the first of equal values",
        "step/cpu_pooling.py",
        "greater = seen > best",
        "greater = seen >= best",
        ("tests/step/test_cpu_forms.py",),
    ),
    Mutant(
        "the CPU's forms are taken for evaluation too",
        "step/evaluation.py",
        "evaluated = fast_on(placement.platform, network)",
        "evaluated = network",
        ("tests/step/test_cpu_forms.py",),
    ),
)


def mutate(tree: pathlib.Path, mutant: Mutant) -> None:
    """Makes the change in a tree.

    Raises:
      ValueError: the text does not stand there once.
    """
    path = tree / "lbsgd" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has not once: {mutant.old}")
    path.write_text(text.replace(mutant.old, mutant.new))


def copy_tree(to: pathlib.Path) -> None:
    """Copies what git tracks and what it would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


def run_tests(tests: Sequence[str], mutant: Mutant | None) -> tuple[int, str]:
    """Pytest's exit code of short tests in a copy of the tree, and what it said of the first."""
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        copy_tree(tree)
        if mutant:
            mutate(tree, mutant)
        options = ["-x", "-q", "-m", "not long", "-p", "no:cacheprovider", "-p", "no:xdist"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        done = subprocess.run(
            ["env", f"PYTHONPATH={tree}", *command], cwd=tree, capture_output=True, text=True
        )
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    said = failures or done.stdout.splitlines()[-1:] or done.stderr.splitlines()[-1:]
    return done.returncode, said[0] if said else ""


def caught(mutant: Mutant) -> tuple[bool, str]:
    """Whether a short test fails that does not without the change, and which."""
    code, said = run_tests(mutant.tests, mutant)
    if code != FAILED:
        return False, said
    test = said.removeprefix("FAILED ").partition(" - ")[0]
    code, without = run_tests([test], None)
    return code == 0, said if code == 0 else f"fails without the change too: {without}"


def main(words: Sequence[str]) -> int:
    """Runs the mutants whose promise has one of the words; all without any."""
    chosen = [m for m in MUTANTS if not words or any(word in m.promise for word in words)]
    begun, dead = time.monotonic(), 0
    for number, mutant in enumerate(chosen, 1):
        start = time.monotonic()
        noticed, how = caught(mutant)
        dead += noticed
        took = time.monotonic() - start
        print(f"{number:2}  {'caught' if noticed else 'LIVES '}  {took:4.0f} s  {mutant.promise}")
        print(f"      {how[:140]}", flush=True)
    print(f"{dead} of {len(chosen)} caught in {(time.monotonic() - begun) / 60:.1f} minutes")
    return 0 if chosen and dead == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
