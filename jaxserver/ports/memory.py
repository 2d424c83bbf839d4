"""What a model will need, known before anything is loaded."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes that weights and cache take on each device.

    Attributes:
        model: The model it is for.
        num_parameters: Numbers in the weights, over all devices.
        num_devices: Devices in the mesh.
        slots: Requests that fit at once.
        weights_bytes_per_device: Of the fullest device.
        cache_bytes_per_device: Keys and values of all its rows.
        working_bytes_per_device: The largest weight in the type that it is computed in,
            where it is kept in fewer bits.
        replicated: Parameters cut into fewer parts than `fsdp` times `mp`, so that more
            than one of the devices that share the weights holds the same.
        undivided: The sizes among them that the mesh would cut, but does not divide.
    """

    model: str
    num_parameters: int
    num_devices: int
    slots: int
    max_length: int
    dtype: str
    weights_bytes_per_device: int
    cache_bytes_per_device: int
    working_bytes_per_device: int = 0
    replicated: tuple[str, ...] = ()
    undivided: tuple[str, ...] = ()

    @property
    def bytes_per_device(self) -> int:
        return (
            self.weights_bytes_per_device
            + self.cache_bytes_per_device
            + self.working_bytes_per_device
        )
