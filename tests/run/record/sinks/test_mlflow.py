"""What is sent to MLflow, by a client of which nothing is known but how it is called.

MLflow itself is in test_services.py.
"""

import threading
import types

import pytest

from lbsgd.run.record.sinks.mlflow import Run


class Client:
    """A server that holds every request until it is told to go on, and then may fail."""

    def __init__(self, history=()):
        self.go, self.error, self.got, self.ended = threading.Event(), None, [], False
        self.history = history

    def get_run(self, run_id):
        names = {"train_loss": 0.0} if self.history else {}
        return types.SimpleNamespace(data=types.SimpleNamespace(metrics=names))

    def get_metric_history(self, run_id, key):
        return [types.SimpleNamespace(step=step) for step in self.history]

    def log_batch(self, run_id, metrics):
        self.go.wait()
        if self.error:
            raise self.error
        self.got += [(key, value, step) for key, value, _, step in metrics]

    def set_terminated(self, run_id):
        self.ended = True


def metric(*parts):
    return parts


def test_training_does_not_wait_for_a_server_and_nothing_is_lost():
    client = Client()
    run = Run(client, "id", metric)
    for step in range(100):
        run(step, {"train_loss": float(step)})
    assert client.got == []
    client.go.set()
    run.close()
    assert client.got == [("train_loss", float(step), step) for step in range(100)]
    assert client.ended


def test_steps_that_it_has_are_not_sent_again():
    client = Client(history=(3, 1, 2))
    client.go.set()
    run = Run(client, "id", metric)
    for step in (2, 3, 4):
        run(step, {"train_loss": 0.5, "val_loss": 1.0})
    run.close()
    assert [(key, step) for key, _, step in client.got] == [
        ("val_loss", 2),
        ("val_loss", 3),
        ("train_loss", 4),
        ("val_loss", 4),
    ]


def write_until_it_fails(run):
    """A thread sends: when that is, nobody knows."""
    while True:
        run(2, {"train_loss": 0.5})


def test_a_server_that_is_gone_is_an_error_and_is_not_waited_for():
    client = Client()
    client.error = ConnectionError("refused")
    run = Run(client, "id", metric)
    run(1, {"train_loss": 0.5})
    client.go.set()
    with pytest.raises(ConnectionError):
        write_until_it_fails(run)
    client.go.clear()  # what would be sent now would hang
    run.close()
    assert not client.ended
    client.go.set()


def test_at_the_end_an_error_is_one_too():
    client = Client()
    client.error = ConnectionError("refused")
    client.go.set()
    run = Run(client, "id", metric)
    run(1, {"train_loss": 0.5})
    with pytest.raises(ConnectionError):
        run.close()
