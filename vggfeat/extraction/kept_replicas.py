"""Networks that are kept from one shard to the next, instead of being built for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.core.settings import Settings
    from vggfeat.network.multi_device import Replicas
    from vggfeat.network.weights import Weights


class KeptReplicas:
    """The networks of the file that was extracted last; those of equal settings take them over."""

    def __init__(self) -> None:
        self._made_of: Any = None
        self._replicas: Replicas | None = None

    def get(
        self, settings: Settings, weights: Weights, activations: Mapping[str, float] | None
    ) -> Replicas:
        """Return the kept networks if they were made of equal arguments, else new ones.

        See `Replicas` for the arguments and errors.
        """
        from vggfeat.network.multi_device import Replicas

        made_of = (settings, weights, dict(activations or {}))
        if self._replicas is None or self._made_of != made_of:
            self._replicas = None  # its memory is needed for the new ones
            self._replicas = Replicas(settings, weights, activations)
            self._made_of = made_of
        return self._replicas
