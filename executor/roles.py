"""What an executor does of a request's life: any of encoding, denoising and decoding."""

from collections.abc import Iterable

ENCODE, DENOISE, DECODE = ROLES = ("encode", "denoise", "decode")
EVERY_ROLE = frozenset(ROLES)


def parse(text: str) -> frozenset[str]:
    """The roles named in `encode,decode`. ValueError says what there is."""
    return check(name.strip() for name in text.split(","))


def check(names: Iterable[str]) -> frozenset[str]:
    """The names as a set. ValueError where one is no role, or there is none."""
    roles = frozenset(names)
    if unknown := sorted(roles - EVERY_ROLE):
        raise ValueError(f"expected some of {','.join(ROLES)}, not {', '.join(map(repr, unknown))}")
    if not roles:
        raise ValueError(f"expected some of {','.join(ROLES)}")
    return roles
