"""In how few updates LARS, Nesterov momentum and growing batches learn Fashion-MNIST.

python benchmarks/fashion_mnist.py run DIR   trains every row that docs/results/fashion_mnist.json
                                             lacks, with 5 seeds, from train.npz and
                                             validation.npz in DIR (about an hour on 2 cores)
python benchmarks/fashion_mnist.py table     prints the table from it
"""

import trainings
from command import run_or_table

RESULTS = trainings.ROOT / "docs" / "results" / "fashion_mnist.json"
ROWS = {
    "kn=128, the rate decays (configs/fashion_mnist_growing.py:decay)": [
        "fashion_mnist_growing.py:decay"
    ],
    "kn=128 to 3200, the batch grows instead (configs/fashion_mnist_growing.py)": [
        "fashion_mnist_growing.py"
    ],
    "kn=1024, linear scaling, gradual warmup": [
        "fashion_mnist.py:epochs=3",
        "--config.model.width=0.25",
        "--config.learning_rate.warmup_epochs=0.5",
        "--config.evaluation.every_epochs=0",
    ],
    "kn=1024, LARS (configs/fashion_mnist_lars.py)": ["fashion_mnist_lars.py"],
    "kn=1024, Nesterov, the same schedule (configs/fashion_mnist_nesterov.py)": [
        "fashion_mnist_nesterov.py"
    ],
}


def run(folder: str) -> None:
    """Trains every row that has no results yet, from the npz files in `folder`."""
    source = ["--config.data.source=npz", f"--config.data.dir={folder}"]
    trainings.run(RESULTS, ROWS, *source)


def table() -> str:
    """Validation error of each row, as Markdown."""
    return trainings.table("Fashion-MNIST", RESULTS, ROWS)


if __name__ == "__main__":
    run_or_table(__doc__, run, table, arguments=1)
