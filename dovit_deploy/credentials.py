"""How is an address shown without its secrets?

Cameras and servers take user names, passwords and keys inside the address. Rows, messages and suggested commands are
kept and passed on, so an address appears in them masked.
"""

from __future__ import annotations

import re

# With a single slash too, which is what is left of an address that was taken for a path.
_COLLAPSED = r"\b(?:https?|rtsps?|rtmps?|ftps?|rtp|srt|tcp|udp):/"
_ADDRESS = re.compile(rf"(?:[A-Za-z][A-Za-z0-9+.-]*://|{_COLLAPSED})[^\s'\"]+", re.IGNORECASE)
# "user:pass@" as the rules have it; then with a "/", "?" or "#" in the password, which should be escaped and often is
# not. A number behind the colon is a port.
_USER = re.compile(r"(?<=:/)(/?)(?:[^/?#]*@|[^/?#@:]*:(?!\d+(?:[/?#]|$)).*@)")
_SECRET = r"token|key|passw|passwd|pwd|\bpass|secret|signature|\bsig|auth|credential|\buser|login"
_FIELD = re.compile(rf"([?&;][^=&;#]*(?:{_SECRET})[^=&;#]*=)[^&;#]+", re.IGNORECASE)
MASK = "***"


def masked(text: str) -> str:
    """`text` with user names, passwords and keys of every address in it replaced by `***`."""
    return _ADDRESS.sub(lambda address: _masked_address(address[0]), text)


def _masked_address(address: str) -> str:
    return _FIELD.sub(rf"\g<1>{MASK}", _USER.sub(rf"\g<1>{MASK}@", address))
