"""Measures throughput: images/s, and the time that devices wait for data."""

import time
from typing import NamedTuple

# Waiting for data longer than this part of the time is worth a line.
INPUT_BOUND = 0.1


class Speed(NamedTuple):
    """Tells the throughput of training.

    Attributes:
      delivered: images/s.
      needed: images/s that the devices would have taken.
      waited: part of the time that they stood still for want of data.
    """

    delivered: float
    needed: float
    waited: float

    @classmethod
    def over(cls, images: int, seconds: float, idle: float) -> "Speed":
        """Computes it for images in seconds, `idle` of which the devices stood still."""
        seconds = max(seconds, 1e-9)
        return cls(images / seconds, images / max(seconds - idle, 1e-9), idle / seconds)

    def __str__(self) -> str:
        text = f"{self.delivered:,.0f} images/s, waited for data {self.waited:.1%} of the time"
        if self.waited <= INPUT_BOUND:
            return text
        return (
            f"{text}; input-bound: {self.needed:,.0f} images/s needed, "
            f"{self.delivered:,.0f} delivered"
        )


class Stopwatch:
    """Measures time spent training: it stands still while evaluating, compiling or saving."""

    def __init__(self) -> None:
        self._before, self._since = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds measured so far."""
        return self._before + time.monotonic() - self._since

    def stop(self) -> None:
        """Stops the clock."""
        self._before = self.seconds

    def start(self) -> None:
        """Starts the clock again."""
        self._since = time.monotonic()
