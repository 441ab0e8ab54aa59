"""Has threads take turns: one runs at a time, until it waits for the others or ends.

So what they run need not be made for threads, and no two of them give the devices programs at the
same time, which collectives of several devices do not survive.
"""

import collections
import threading
from collections.abc import Callable


class Turns:
    """Passes one turn around members, who meet again and again.

    A member that ends is waited for by nobody.
    """

    def __init__(self, members: int, act: Callable[[], None]) -> None:
        """Gives the turn to nobody yet.

        Args:
          act: is called whenever all members that are still there have met, before any goes on;
            what it raises, each of them raises.
        """
        self._act = act
        self._error: BaseException | None = None
        self._there, self._waiting = set(range(members)), set[int]()
        self._ready = collections.deque(range(members))
        self._go = [threading.Semaphore(0) for _ in range(members)]

    def start(self) -> None:
        """Gives the turn to the first member."""
        self._pass_on()

    def begin(self, member: int) -> None:
        """Waits for the first turn of a member."""
        self._go[member].acquire()

    def meet(self, member: int) -> None:
        """Waits until all that are there have met, and for the turn after that."""
        self._waiting.add(member)
        self._pass_on()
        self._go[member].acquire()
        if self._error:
            raise self._error

    def leave(self, member: int) -> None:
        """Ends the turn of a member, which takes part no more."""
        self._there.remove(member)
        self._pass_on()

    def _pass_on(self) -> None:
        """Gives the turn to the next that can go on; where all wait, after they have met."""
        if not self._ready and self._there:
            # All that are there wait: who was ready has had the turn since.
            try:
                self._act()
            except BaseException as error:
                self._error = error
            self._ready.extend(sorted(self._waiting))
            self._waiting.clear()
        if self._ready:
            self._go[self._ready.popleft()].release()
