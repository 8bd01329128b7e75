"""Find and redact personal data (stub, replaced below)."""


def redact(text: str) -> tuple[str, tuple[str, ...]]:
    return text, ()
