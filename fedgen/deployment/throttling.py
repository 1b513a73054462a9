"""What a Raspberry Pi's firmware says of power and heat (``vcgencmd get_throttled``), in words."""

BITS = {
    0: "under-voltage",
    1: "clock capped",
    2: "throttled",
    3: "soft temperature limit",
    16: "under-voltage since start",
    17: "clock was capped",
    18: "was throttled",
    19: "soft temperature limit was reached",
}
VOLTAGE = 1 << 0 | 1 << 16
NOW = 0xF


def bits_of(text: str) -> int:
    """The bits of ``0x50005``; none of what is no number.

    >>> bits_of("0x50005"), bits_of("?")
    (327685, 0)
    """
    try:
        return int(text, 16)
    except ValueError:
        return 0


def words(bits: int) -> str:
    """What the bits mean; of what is still so, not that it once was.

    >>> words(0x50005), words(0x80000), words(0)
    ('under-voltage, throttled', 'soft temperature limit was reached', '')
    """
    told = [bit for bit in BITS if bits >> bit & 1 and not (bit >= 16 and bits >> bit - 16 & 1)]
    return ", ".join(BITS[bit] for bit in told)
