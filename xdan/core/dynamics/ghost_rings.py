"""Rings of sites in buffers with ghost rows: neighbours are views, so that no step copies them."""

from __future__ import annotations

from torch import Tensor


class GhostRing:
    """States as columns with ghost rows at both ends of the ring. `at[k]` is a view of the sites shifted by k.

    Parameters
    ----------
    like : Tensor, shape (sites, columns)
        The buffer has its shape, dtype and device.
    behind, ahead : int
        Numbers of ghost rows before the first site, and after the last.
    """

    __slots__ = ("_ghosts", "at", "sites")

    def __init__(self, like: Tensor, behind: int, ahead: int) -> None:
        n, batch = like.shape
        whole = like.new_empty(behind + n + ahead, batch)
        self.at = {k: whole[behind + k : behind + k + n] for k in range(-behind, ahead + 1)}
        self.sites = self.at[0]
        ghosts = (whole[:behind], whole[n : n + behind]), (whole[behind + n :], whole[behind : behind + ahead])
        self._ghosts = [(ghost, site) for ghost, site in ghosts if len(ghost)]

    def close(self) -> GhostRing:
        """Copy values of the sites into the ghosts."""
        for ghost, site in self._ghosts:
            ghost.copy_(site)
        return self
