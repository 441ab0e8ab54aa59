"""What each part of the large-batch recipe does to digits: Goyal et al., Tables 1 and 2a, in small;
and in how few updates LARS, Nesterov momentum and growing batches get there.

    python benchmarks/digits.py run      trains every row that docs/results/digits.json lacks, with
                                         5 seeds (all of them: about 20 minutes on 2 cores)
    python benchmarks/digits.py table    prints the table from docs/results/digits.json
"""

import trainings
from command import run_or_table

RESULTS = trainings.ROOT / "docs" / "results" / "digits.json"
ROWS = {
    "kn=32, one worker: the reference": ["digits.py", "--config.batch_size=32"],
    "kn=256, linear scaling, gradual warmup (configs/digits.py)": ["digits.py"],
    "kn=256, linear scaling, constant warmup": [
        "digits.py",
        "--config.learning_rate.warmup=constant",
    ],
    "kn=256, linear scaling, no warmup": ["digits.py", "--config.learning_rate.warmup=none"],
    "kn=256, square-root scaling, gradual warmup": [
        "digits.py",
        "--config.learning_rate.scaling=sqrt",
    ],
    "kn=256, the reference's learning rate": ["digits.py", "--config.learning_rate.scaling=none"],
    "kn=512, linear scaling, gradual warmup": ["digits.py", "--config.batch_size=512"],
    "kn=1024, linear scaling, gradual warmup": ["digits.py", "--config.batch_size=1024"],
    "kn=1024, LARS (configs/digits_lars.py)": ["digits_lars.py"],
    "kn=1024, Nesterov, the same schedule (configs/digits_nesterov.py)": ["digits_nesterov.py"],
    "kn=128, the rate decays (configs/digits_growing.py:decay)": ["digits_growing.py:decay"],
    "kn=128 to 1024, the batch grows instead (configs/digits_growing.py)": ["digits_growing.py"],
}


def run() -> None:
    """Trains every row that has no results yet."""
    trainings.run(RESULTS, ROWS)


def table() -> str:
    """Validation error of each row, as Markdown."""
    return trainings.table("digits", RESULTS, ROWS)


if __name__ == "__main__":
    run_or_table(__doc__, run, table)
