"""What may be done with a medium: the service fetches it, we read and inline it, or we sign its URL for the service."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from arkbeam.base.errors import ConfigError


class Access(StrEnum):
    """How a medium gets to the service."""

    PASS = "pass"  # noqa: S105 - no password
    """Its URL goes to the service as it stands: only the service looks at it."""
    INLINE = "inline"
    """It is read here and goes as base64."""
    SIGN = "sign"
    """It is looked at here, and a signed URL of it, made just before sending, goes to the service."""


Medium = Literal["image", "video"]
AccessRules = Mapping[str, Access | Mapping[Medium, Access]]
"""By scheme, for all its media or for each modality."""

WEB_SCHEMES = frozenset({"http", "https"})
LOCAL_SCHEMES = frozenset({"file", "local"})
# Several names of one kind of storage: a rule for one holds for those that have none of their own.
_SAME = (("s3", "s3a"), ("gs", "gcs"), ("az", "abfs", "abfss"), ("file", "local"))
# fsspec's file systems that sign (s3fs, gcsfs, adlfs); of tosfs, which does not, the vendor's client below it does.
# ossfs and the one for HDFS can't.
_SIGNABLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "tos"})


def default_access(scheme: str) -> Access:
    """Return what is done with a scheme that no rule names."""
    if scheme in WEB_SCHEMES:
        return Access.PASS
    return Access.SIGN if scheme == "tos" else Access.INLINE


def possible_access(scheme: str) -> tuple[Access, ...]:
    """Return what can be done with a scheme at all."""
    if scheme in WEB_SCHEMES:
        return Access.PASS, Access.INLINE
    return (Access.INLINE, Access.SIGN) if scheme in _SIGNABLE else (Access.INLINE,)


def find_access(scheme: str, medium: str, rules: AccessRules) -> Access:
    """Return what is done with a medium: by its scheme's rule, else by that of another name of it, else the default."""
    for name in same_schemes(scheme):
        rule = rules.get(name)
        if isinstance(rule, Mapping):
            rule = {**rule}.get("video" if medium == "video" else "image")
        if rule is not None:
            return rule
    return default_access(scheme)


def same_schemes(scheme: str) -> tuple[str, ...]:
    """Return all names of a scheme's kind of storage, its own first."""
    for names in _SAME:
        if scheme in names:
            return scheme, *(name for name in names if name != scheme)
    return (scheme,)


def check_rules(rules: AccessRules, schemes: tuple[str, ...]) -> None:
    """Refuse rules that can't be kept; `schemes` are the object stores that a manifest may name. Raises ConfigError."""
    known = {*WEB_SCHEMES, *LOCAL_SCHEMES, *schemes}
    for scheme, rule in rules.items():
        key = f"media.access.{scheme}"
        if scheme not in known:
            raise ConfigError(f"{key}: manifests may name no media of this scheme (media.schemes)")
        wanted = [*rule.values()] if isinstance(rule, Mapping) else [rule]
        possible = possible_access(scheme)
        for access in wanted:
            if access not in possible:
                raise ConfigError(f"{key}: {access.value} can't be done; {' or '.join(possible)} can")
