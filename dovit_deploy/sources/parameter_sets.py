"""Which transfer characteristic does an H.264 or HEVC stream state in its sequence parameter set?

Encoders often write it there alone, behind some forty fields of variable length that have to be read to get to it.
Sources: ITU-T H.264, 7.3.2.1.1 and E.1.1; ITU-T H.265, 7.3.2.2, 7.3.4, 7.3.7 and E.2.1; ISO/IEC 14496-15.
"""

from __future__ import annotations

_H264_PROFILES_WITH_CHROMA = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
_HEVC_SPS = 33
_LONGEST_CODE = 32
_MOST_PICTURE_SETS = 64
_MOST_PICTURES = 16
_EXTENDED_ASPECT = 255


def transfer_of_avcc(record: bytes) -> int | None:
    """Transfer characteristic (ITU-T H.273) in an AVCDecoderConfigurationRecord; None where none is stated."""
    length = int.from_bytes(record[6:8])
    # One byte of header before the parameter set.
    return _stated(record[9 : 8 + length], hevc=False)


def transfer_of_hvcc(record: bytes) -> int | None:
    """Transfer characteristic (ITU-T H.273) in an HEVCDecoderConfigurationRecord; None where none is stated."""
    at = 23
    for _ in range(record[22] if len(record) > 22 else 0):
        kind, count = record[at : at + 1], int.from_bytes(record[at + 1 : at + 3])
        at += 3
        for _ in range(min(count, _MOST_PICTURE_SETS)):
            length = int.from_bytes(record[at : at + 2])
            if kind and kind[0] & 0x3F == _HEVC_SPS:
                return _stated(record[at + 4 : at + 2 + length], hevc=True)
            at += 2 + length
    return None


def _stated(payload: bytes, *, hevc: bool) -> int | None:
    # Zeros are broken up so that no start code occurs in the data.
    bits = _Bits(payload.replace(b"\0\0\3", b"\0\0"))
    try:
        (_skip_hevc if hevc else _skip_h264)(bits)
        return _transfer_of_vui(bits)
    except ValueError:
        return None


class _Bits:
    """A bit string, read from its beginning; raises ValueError behind its end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        self._left -= count
        if self._left < 0:
            raise ValueError("the parameter set is cut off")
        return self._value >> self._left & ((1 << count) - 1)

    def flag(self) -> bool:
        return bool(self.take(1))

    def unsigned(self) -> int:
        """An Exp-Golomb code: as many zeros as bits follow the first one."""
        zeros = 0
        while not self.flag():
            zeros += 1
            if zeros > _LONGEST_CODE:
                raise ValueError("no code is so long")
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        code = self.unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)

    def skip_codes(self, count: int) -> None:
        for _ in range(count):
            self.unsigned()


def _transfer_of_vui(bits: _Bits) -> int | None:
    """From the flag on that says whether there is usability information."""
    if not bits.flag():
        return None
    if bits.flag() and bits.take(8) == _EXTENDED_ASPECT:
        bits.take(32)
    if bits.flag():
        bits.take(1)
    if not bits.flag():
        return None
    bits.take(4)
    # Primaries, transfer, matrix.
    return bits.take(24) >> 8 & 0xFF if bits.flag() else None


def _skip_h264(bits: _Bits) -> None:
    profile = bits.take(24) >> 16
    bits.unsigned()
    if profile in _H264_PROFILES_WITH_CHROMA:
        chroma = bits.unsigned()
        if chroma == 3:
            bits.take(1)
        bits.skip_codes(2)
        bits.take(1)
        if bits.flag():
            for number in range(12 if chroma == 3 else 8):
                if bits.flag():
                    _skip_h264_scaling(bits, 16 if number < 6 else 64)
    bits.unsigned()
    order = bits.unsigned()
    if order == 0:
        bits.unsigned()
    elif order == 1:
        bits.take(1)
        bits.skip_codes(2)
        bits.skip_codes(min(bits.unsigned(), 256))
    bits.unsigned()
    bits.take(1)
    bits.skip_codes(2)
    if not bits.flag():
        bits.take(1)
    bits.take(1)
    if bits.flag():
        bits.skip_codes(4)


def _skip_h264_scaling(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _skip_hevc(bits: _Bits) -> None:
    bits.take(4)
    layers = bits.take(3)
    bits.take(1)
    _skip_hevc_profiles(bits, layers)
    bits.unsigned()
    if bits.unsigned() == 3:
        bits.take(1)
    bits.skip_codes(2)
    if bits.flag():
        bits.skip_codes(4)
    bits.skip_codes(2)
    order_bits = bits.unsigned() + 4
    bits.skip_codes(3 * (layers + 1 if bits.flag() else 1))
    bits.skip_codes(6)
    if bits.flag() and bits.flag():
        _skip_hevc_scaling(bits)
    bits.take(2)
    if bits.flag():
        bits.take(8)
        bits.skip_codes(2)
        bits.take(1)
    _skip_picture_sets(bits)
    if bits.flag():
        for _ in range(min(bits.unsigned(), _MOST_PICTURE_SETS)):
            bits.take(order_bits + 1)
    bits.take(2)


def _skip_hevc_profiles(bits: _Bits, layers: int) -> None:
    bits.take(96)
    present = [(bits.flag(), bits.flag()) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for profile, level in present:
        bits.take(88 * profile + 8 * level)


def _skip_hevc_scaling(bits: _Bits) -> None:
    for size in range(4):
        for _ in range(2 if size == 3 else 6):
            if not bits.flag():
                bits.unsigned()
                continue
            bits.skip_codes(min(64, 1 << (4 + 2 * size)) + (size > 1))


def _skip_picture_sets(bits: _Bits) -> None:
    """Short-term reference picture sets; one may be predicted from the one before it, picture by picture."""
    before: list[int] = []
    for number in range(min(bits.unsigned(), _MOST_PICTURE_SETS)):
        before = _predicted_set(bits, before) if number and bits.flag() else _listed_set(bits)


def _listed_set(bits: _Bits) -> list[int]:
    """Distances of the pictures, before and behind."""
    counts = bits.unsigned(), bits.unsigned()
    if max(counts) > _MOST_PICTURES:
        raise ValueError("no set has so many pictures")
    found = []
    for count, sign in zip(counts, (-1, 1), strict=True):
        distance = 0
        for _ in range(count):
            distance += sign * (bits.unsigned() + 1)
            bits.take(1)
            found.append(distance)
    return found


def _predicted_set(bits: _Bits, before: list[int]) -> list[int]:
    sign = -1 if bits.flag() else 1
    step = sign * (bits.unsigned() + 1)
    found = []
    for distance in (*before, 0):
        # Not used by the current picture: a second flag says whether it stays in the set.
        if bits.flag() or bits.flag():
            found.append(distance + step)
    # A picture is no reference of its own. Those before come first, the nearest first; then those behind.
    kept = [distance for distance in found if distance]
    return sorted((d for d in kept if d < 0), reverse=True) + sorted(d for d in kept if d > 0)
