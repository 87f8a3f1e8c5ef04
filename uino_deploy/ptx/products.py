"""Products in flight: sums that no wait has completed, and the shared memory they still read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from uino_deploy.ptx.floats import Array


class _Product(NamedTuple):
    """One `wgmma` of some lanes: what it adds to which registers, and what it reads."""

    sums: list[Array]
    fragments: Array
    added: Array
    lanes: Array
    groups: Array
    granules: Array


class Products:
    """The products in flight of all lanes, in the order they were started.

    `readers` (int32, [granules]) counts the products that still read each granule.
    """

    def __init__(self, lanes: int, granules: int) -> None:
        self.committed = np.zeros(lanes, dtype=np.int64)
        self.readers = np.zeros(granules, dtype=np.int32)
        self._waiting: list[_Product] = []

    def reset(self) -> None:
        """Forget everything: new blocks take the slots."""
        self.committed.fill(0)
        self.readers.fill(0)
        self._waiting.clear()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def start(
        self, sums: list[Array], fragments: Array, added: Array, lanes: Array, granules: Array
    ) -> None:
        """Record a product: float32 [registers, lanes], for the registers' rows in `sums`."""
        once = np.unique(granules)
        self.readers[once] += 1
        groups = self.committed[lanes]
        self._waiting.append(_Product(sums, fragments, added, lanes, groups, once))

    def commit(self, lanes: Array) -> None:
        """Close the current group of these lanes."""
        self.committed[lanes] += 1

    def finish(self, lanes: Array, allowed: int) -> list[Array]:
        """Complete all but the last `allowed` groups; return the granules no longer read.

        A product leaves flight as a whole, when the last of its lanes has waited for it.
        """
        limit = np.full(self.committed.size, -1, dtype=np.int64)
        limit[lanes] = self.committed[lanes] - allowed
        released, remaining = [], []
        for product in self._waiting:
            done = product.groups < limit[product.lanes]
            if done.any():
                self._store(product, done)
            if done.all():
                self.readers[product.granules] -= 1
                released.append(product.granules)
            else:
                left = ~done
                remaining.append(
                    _Product(
                        product.sums,
                        product.fragments[:, left],
                        product.added[left],
                        product.lanes[left],
                        product.groups[left],
                        product.granules,
                    )
                )
        self._waiting = remaining
        return released

    @staticmethod
    def _store(product: _Product, done: Array) -> None:
        lanes, added = product.lanes[done], product.added[done]
        for row, fragment in zip(product.sums, product.fragments[:, done], strict=True):
            before = np.where(added, row[lanes].view(np.float32), np.float32(0))
            row[lanes] = (fragment + before).view(np.uint32)
