"""Damage a file in ways that hypothesis chooses."""

from __future__ import annotations

from hypothesis import strategies as st


def harm(data: st.DataObject, file: bytearray) -> None:
    """Change, remove or add bytes of a file at one to three places."""
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(file) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                file[at] ^= 1 << data.draw(st.integers(0, 7))
            case 1:
                file[at] = data.draw(st.sampled_from([0, 0xFF, 0xD9, 0xC4, 0xDA, 1]))
            case 2:
                del file[at : at + data.draw(st.integers(1, 40))]
            case _:
                file[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        if not file:
            break
