"""What an executor does of a request's life: any of encoding, denoising and decoding."""

ENCODE, DENOISE, DECODE = ROLES = ("encode", "denoise", "decode")
EVERY_ROLE = frozenset(ROLES)


def parse(text: str) -> frozenset[str]:
    """The roles named in `encode,decode`. ValueError says what is wrong with them."""
    names = [name.strip() for name in text.split(",")]
    roles = frozenset(names)
    if unknown := sorted(roles - EVERY_ROLE):
        raise ValueError(f"expected some of {','.join(ROLES)}, not {', '.join(map(repr, unknown))}")
    if twice := sorted(role for role in roles if names.count(role) > 1):
        raise ValueError(f"expected each role once, not {', '.join(twice)} again")
    return roles
