"""Devices to plan for: what their makers promise, what they cost, and how much of it is reached."""

from dataclasses import dataclass, field, replace

from flashback.errors import SettingsError

GIB = 1 << 30
PRICE_NOTE = "assumed"
"""What the prices below are: round figures, of no price list."""


@dataclass(frozen=True)
class Efficiency:
    """The shares of a device's peaks that passes reach."""

    weights: float
    """Of the bandwidth, reading weights."""
    cache: float
    """Of the bandwidth, reading and writing keys and values."""
    matrices: float
    """Of the matrix rate."""


_GPU = {
    "bfloat16": Efficiency(0.45, 0.5, 0.5),
    "float32": Efficiency(0.57, 0.09, 0.69),
}
"""As this engine reached them at batch 1 on an H100 (docs/results/gpu). In float32 its attention
read a row's columns one after another then; products took its place since."""
_CPU = {"float32": Efficiency(0.5, 0.5, 0.87), "bfloat16": Efficiency(0.5, 0.5, 0.5)}
"""In float32 as docs/results has it; in bfloat16 assumed."""


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU that docs/results was measured on."""

    name: str
    title: str
    gib: float
    """Memory, GiB."""
    bytes_per_second: float
    """Peak bandwidth of its memory."""
    operations_per_second: dict[str, float]
    """Peak rate of matrix products by dtype, without sparsity; float32 without TF32."""
    price: float
    """US dollars per hour; see `PRICE_NOTE`."""
    efficiencies: dict[str, Efficiency] = field(default_factory=lambda: _GPU)
    """By dtype."""

    def rate(self, dtype: str) -> float:
        """Peak operations per second in a dtype.

        Raises:
            SettingsError: none is known.
        """
        if dtype not in self.operations_per_second:
            known = ", ".join(self.operations_per_second)
            raise SettingsError(f"--dtype={dtype!r}: {self.title} has rates for {known}")
        return self.operations_per_second[dtype]


def _gpu(
    name: str,
    title: str,
    gib: float,
    gigabytes: float,
    bfloat16: float,
    float32: float,
    price: float,
) -> Device:
    rates = {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}
    return Device(name, title, gib, gigabytes * 1e9, rates, price)


DEVICES = {
    device.name: device
    for device in (
        _gpu("h100", "NVIDIA H100 SXM", 80, 3350, 989, 67, 3.0),
        _gpu("h200", "NVIDIA H200 SXM", 141, 4800, 989, 67, 4.0),
        _gpu("a100", "NVIDIA A100 80 GB", 80, 2039, 312, 19.5, 1.5),
        _gpu("l40s", "NVIDIA L40S", 48, 864, 362, 91.6, 1.0),
        _gpu("l4", "NVIDIA L4", 24, 300, 121, 30.3, 0.7),
        _gpu("rtx-4090", "NVIDIA RTX 4090", 24, 1008, 165, 82.6, 0.5),
        _gpu("mi300x", "AMD MI300X", 192, 5300, 1307, 163.4, 3.0),
        replace(
            _gpu("cpu", "two cores of an AMD EPYC with AVX-512", 8, 40, 0.5, 0.22, 0.1),
            efficiencies=_CPU,
        ),
    )
}


def device_named(name: str) -> Device:
    """The device of a name.

    Raises:
        SettingsError: there is none.
    """
    if name not in DEVICES:
        raise SettingsError(f"--gpu={name!r}: expected one of {', '.join(DEVICES)}")
    return DEVICES[name]


def parse_efficiency(text: str) -> Efficiency:
    """Three shares, as `--efficiency` takes them: weights, cache, matrices.

    Raises:
        SettingsError: not three numbers above 0 up to 1.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not all(0 < share <= 1 for share in shares):
        raise SettingsError(
            f"--efficiency={text!r}: expected three shares above 0 up to 1, of weights, cache and "
            "matrices, such as 0.7,0.7,0.6"
        )
    return Efficiency(*shares)
