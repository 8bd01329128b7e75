"""What a request may hold at most. Every way in refuses by these numbers, and documents name
them.
"""

from typing import Final

MAX_CHARS = 10_000  # of a raw text
MAX_TEXTS: Final = 256
# Of all texts of a request: 256 of 1,000. A router prepares them in less than two seconds, whatever
# is in them.
MAX_REQUEST_CHARS: Final = 256_000
MAX_SHADOWS: Final = 2  # each of them runs every message once more
MAX_DEADLINE_MS: Final = 60_000
