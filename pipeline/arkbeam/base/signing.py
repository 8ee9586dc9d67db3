"""The query parameters that sign a URL: one table for the fingerprint, which leaves them out, and for masking.

A signature does not change what a URL points at, so a URL that is signed again names the same picture. A parameter that
is left out by mistake gives a picture the vector of another one. So whole names count, not prefixes (`x-tos-process`
and `x-oss-process` select another picture), and a name that is also used for other things counts only together with the
rest of its scheme. Masking goes further than this table: see `base.redaction`.

Sources: the vendors' pages on presigned URLs, signature version 4 and older, and on protection of CDN links.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SigningScheme:
    """The parameters of one way to sign a URL."""

    parameters: frozenset[str]
    """Names that are not part of what the URL points at."""
    secrets: frozenset[str] = frozenset()
    """Those that must not be shown: signatures, credentials, and what a signature is made of."""
    needs: frozenset[str] = frozenset()
    """Names that a URL must all have, or `parameters` do not count. Empty: each parameter counts alone."""
    values: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """Patterns that the values of some of the needed names must match."""
    any_case: bool = False
    """True if names also count in other letters; `parameters` are then in lower case."""

    def applies_to(self, found: Mapping[str, str]) -> bool:
        """Return True if a URL with these parameters is signed this way."""
        return self.needs <= found.keys() and all(
            pattern.fullmatch(found[name]) for name, pattern in self.values.items()
        )


def _version_4(vendor: str, *further: str) -> SigningScheme:
    names = ("algorithm", "credential", "date", "expires", "signedheaders", "signature", "security-token", *further)
    secret = ("credential", "signature", "security-token")
    return SigningScheme(
        frozenset(f"x-{vendor}-{name}" for name in names),
        frozenset(f"x-{vendor}-{name}" for name in secret),
        any_case=True,
    )


_UNIX_TIME = re.compile(r"[0-9]{9,13}")
_COS = ("q-sign-algorithm", "q-ak", "q-sign-time", "q-key-time", "q-header-list", "q-url-param-list", "q-signature")

ALONE = (
    _version_4("amz", "content-sha256", "user-agent"),
    _version_4("tos", "content-sha256", "policy"),
    _version_4("goog"),
    SigningScheme(
        frozenset(
            f"x-oss-{name}"
            for name in (
                "signature-version", "credential", "date", "expires", "signature", "security-token", "additional-headers",
            )
        ),
        frozenset({"x-oss-credential", "x-oss-signature", "x-oss-security-token"}),
        any_case=True,
    ),
    SigningScheme(
        frozenset(
            {"Signature", "Expires", "AWSAccessKeyId", "OSSAccessKeyId", "GoogleAccessId", "Key-Pair-Id"}
            | {"security-token"}
        ),
        frozenset({"Signature", "AWSAccessKeyId", "OSSAccessKeyId", "GoogleAccessId", "Key-Pair-Id", "security-token"}),
    ),
)  # fmt: skip
"""Schemes whose parameters count one by one."""

COMBINED = (
    # Azure's shared access signature: names of two or three letters.
    SigningScheme(
        frozenset(
            {"sig", "sv", "ss", "srt", "sp", "st", "se", "sip", "spr", "sr", "si", "sdd", "ses", "suoid", "scid"}
            | {"skoid", "sktid", "skt", "ske", "sks", "skv", "saoid"}
        ),
        frozenset({"sig"}),
        needs=frozenset({"sig", "sv"}),
    ),
    # CloudFront with a custom policy.
    SigningScheme(
        frozenset({"Policy"}), frozenset({"Policy"}), needs=frozenset({"Policy", "Signature", "Key-Pair-Id"})
    ),
    # Volcengine's and ByteDance's CDN.
    SigningScheme(
        frozenset({"x-expires", "x-signature"}),
        frozenset({"x-signature"}),
        needs=frozenset({"x-expires", "x-signature"}),
        values={"x-expires": _UNIX_TIME, "x-signature": re.compile(".+")},
    ),
    # "Method A" of Alibaba's, Tencent's and other CDNs: time, random text, user, MD5.
    SigningScheme(
        frozenset({"auth_key"}),
        frozenset({"auth_key"}),
        needs=frozenset({"auth_key"}),
        values={"auth_key": re.compile(r"[0-9]{9,11}-[0-9A-Za-z_]{1,128}-[0-9A-Za-z_]{1,64}-[0-9A-Fa-f]{32}")},
    ),
    # Tencent's COS: the parameters of the signature, or all of them inside one.
    SigningScheme(
        frozenset({*_COS, "x-cos-security-token"}),
        frozenset({*_COS, "x-cos-security-token"}),
        needs=frozenset({"q-sign-algorithm", "q-signature"}),
    ),
    SigningScheme(
        frozenset({"sign", "x-cos-security-token"}),
        frozenset({"sign", "x-cos-security-token"}),
        needs=frozenset({"sign"}),
        values={"sign": re.compile(r"q-sign-algorithm%3D.*%26q-signature%3D[0-9a-f]+", re.IGNORECASE)},
    ),
)
"""Schemes whose parameters count only together."""

SECRET_PARAMETERS = frozenset(name.lower() for scheme in (*ALONE, *COMBINED) for name in scheme.secrets)
"""The names, in lower case, of all parameters whose values must not be shown."""
