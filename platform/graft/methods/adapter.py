"""Bottleneck adapters: two thin layers per sub-layer of a frozen language model.

    text ─► tuned(frozen weights + adapters) ─► prediction, scores

Serial: Houlsby et al. 2019 (arXiv:1902.00751); parallel: He et al. 2022 (arXiv:2110.04366). See
`graft.methods.bottleneck` for both, and for the deviations.
"""

from typing import Any, Literal

from graft.methods.tuning import Bottleneck, Tuning, mapping_of


class Adapter(Tuning):
    """A bottleneck adapter, tuned."""

    name: Literal["adapter"] = "adapter"
    adapter: Bottleneck = Bottleneck()
    """Which adapter, and how wide."""

    def trained(self) -> dict[str, Any]:
        """The adapter."""
        return mapping_of(self.adapter)
