"""Where a loader is: the epoch, and how many of its samples the caller has received.

Comes in: what happens to the loader. Goes out: where its next pass begins. Nothing else of a
loader decides that; docs/architecture.md has the drawing.
"""

from __future__ import annotations

from dataclasses import dataclass

from xmix_data.loader.spans import Share

__all__ = ["Position"]


@dataclass
class Position:
    """The state machine of epochs and positions.

    ``set``     (epoch, position) is where the next pass begins
    ``loaded``  the same, by `load`: its epoch may be named by `set_epoch` without losing it
    ``moving``  a batch was received since: the next pass is the next epoch
    """

    epoch: int = 0
    position: int = 0
    """Samples that the caller has received, over all ranks."""
    moving: bool = False
    loaded: tuple[int, int] | None = None
    """What `load` was given, until a batch is received or another epoch is set."""
    named: bool = False
    """Whether `set_epoch` has named the loaded epoch: it is passed over even where it is over."""

    def load(self, epoch: int, position: int) -> None:
        """Go on where a state was taken."""
        self.epoch, self.position, self.moving = epoch, position, False
        self.loaded, self.named = (epoch, position), False

    def skip(self, batches: int, share: Share) -> None:
        """Go on behind that many of the batches that would come next."""
        epoch, position = self.next(share)
        left = share.batches_from(position)
        if batches < left:
            position += batches * share.step
        else:
            epochs, batches = divmod(batches - left, len(share))
            epoch, position = epoch + 1 + epochs, batches * share.step
        self.load(epoch, position)

    def set_epoch(self, epoch: int) -> None:
        """Make an epoch the next one: from its start, or from the loaded position in it."""
        if self.loaded is not None and epoch == self.loaded[0]:
            self.epoch, self.position = self.loaded
            self.moving, self.named = False, True
        else:
            self._start(epoch)

    def begin(self) -> None:
        """Note that a pass begins: after one that was left early, it is the next epoch's."""
        if self.moving:
            self._start(self.epoch + 1)

    def next(self, share: Share) -> tuple[int, int]:
        """Epoch and position from which the next batch would come, if its pass began now."""
        if self.moving:
            return self.epoch + 1, 0
        over = not share.has_batch(self.position)
        if self.loaded is not None and over and not self.named:
            return self.epoch + 1, 0
        return self.epoch, self.position

    def enter(self, share: Share) -> tuple[int, int]:
        """Be where the pass that has begun finds its first batch."""
        epoch, position = self.next(share)
        if epoch != self.epoch:
            self._start(epoch)
        return epoch, position

    def receive(self, position: int) -> None:
        """Note that the caller got a batch, which ends at a position of the epoch."""
        self.position, self.moving, self.loaded = position, True, None

    def end(self) -> None:
        """Note that a pass was exhausted."""
        self._start(self.epoch + 1)

    def _start(self, epoch: int) -> None:
        self.epoch, self.position, self.moving, self.loaded, self.named = (
            epoch,
            0,
            False,
            None,
            False,
        )
