"""Keys in place of what identifies a patient, salted with a secret so that nobody can find the patient by trying ids.

A key is an HMAC-SHA256 of the id. It starts with a short fingerprint of its salt, so that keys of different salts,
which can never be compared, are noticed (``require_one_salt``). Its digits are letters: ``identity.comparison_key``
would take numbers in an id for different spellings of each other.

The salt is the file that ``--patient-salt`` names. Without that option it is random, one for each source of images, and
lies in the cache folder of the user, who alone may read it: never in a run folder, which is passed on.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from twinbud.config.data_spec import parse_data
from twinbud.core.cache import cache_folder, reason_of
from twinbud.core.errors import TwinbudError
from twinbud.core.files import read_bytes

MIN_SALT_BYTES, MAX_SALT_BYTES = 16, 4096
KEY = re.compile(r"hashed-([a-p]{6})-[a-p]{16}")
_OPTION = "--patient-salt"
_COMMAND = 'python -c "import secrets; print(secrets.token_hex(32))" > FILE'
_MAKE = f"Make one: {_COMMAND}"


class PatientSalt:
    """The secret of one source of images, read or made when the first id is hashed.

    Args:
        file: What ``--patient-salt`` names; None for the salt that the cache keeps for the source.
        source: The source, as ``--data`` names it.
    """

    def __init__(self, file: Path | None, source: str) -> None:
        self._file, self._source = file, source
        self._secret: bytes | None = None

    def hashed(self, identity: str) -> str:
        """Return the key of an id.

        Raises:
            TwinbudError: The salt is missing, too short, or can be neither read nor made.
        """
        if self._secret is None:
            made = self._file is None
            self._secret = _read_or_make(default_salt_file(self._source)) if made else read_salt(self._file or Path())
        return f"hashed-{_letters(hashlib.sha256(self._secret).digest(), 6)}-{_letters(self._digest(identity), 16)}"

    def _digest(self, identity: str) -> bytes:
        return hmac.digest(self._secret or b"", identity.encode("utf-8", "surrogatepass"), "sha256")


def default_salt_file(source: str) -> Path:
    """Return where the cache keeps the salt of a source, which need not exist yet."""
    place = os.path.realpath(Path(source).expanduser()) if parse_data(source).is_path else source
    return cache_folder() / "patient-salts" / hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def read_salt(file: Path) -> bytes:
    """Read a salt.

    Raises:
        TwinbudError: The file is missing, cannot be read, or is too short or too long.
    """
    where = f"{_OPTION} {file}"
    try:
        secret = read_bytes(file.expanduser(), MAX_SALT_BYTES).strip()
    except OSError as error:
        fix = f"Give the salt of the run whose patients are compared. For a new run, make one: {_COMMAND}"
        raise TwinbudError(f"the salt cannot be read ({reason_of(error)})", where=where, fix=fix) from error
    if len(secret) < MIN_SALT_BYTES:
        problem = f"the salt has {len(secret)} bytes, fewer than {MIN_SALT_BYTES}"
        raise TwinbudError(problem, where=where, fix=_MAKE)
    return secret


def is_key(patient_id: str | None) -> bool:
    """Return whether a patient id is a key, not an id that somebody wrote."""
    return patient_id is not None and KEY.fullmatch(patient_id) is not None


def require_one_salt(first: Iterable[str | None], second: Iterable[str | None], *, where: str) -> None:
    """Refuse to compare the patients of two sets whose keys have different salts.

    Args:
        first: Patient ids of one set; ids that are no keys do not count.
        second: Those of the other set.
        where: The other set, for the error.

    Raises:
        TwinbudError: Both sets have keys, and no salt of the first is one of the second.
    """
    salts = [{match[1] for text in ids if text and (match := KEY.fullmatch(text))} for ids in (first, second)]
    if all(salts) and not salts[0] & salts[1]:
        raise TwinbudError(
            "the patient ids are hashed with a different salt than in the run, so that patients cannot be compared",
            where=where,
            fix=f"Give the salt of the run: {_OPTION} FILE",
        )


def _read_or_make(file: Path) -> bytes:
    """Return the salt in the cache; several processes that make it at once end with the same one."""
    if file.exists():
        return read_salt(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, draft = tempfile.mkstemp(dir=file.parent)  # readable by its owner only
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as draft_file:
                draft_file.write(f"{secrets.token_hex(32)}\n")
            with suppress(FileExistsError):  # unlike a rename, a link keeps the salt of a faster process
                os.link(draft, file)
        finally:
            os.unlink(draft)  # noqa: PTH108 - the pair of mkstemp
    except OSError as error:
        raise TwinbudError(
            f"the salt that hashes patient ids cannot be saved ({reason_of(error)})", where=str(file.parent), fix=_MAKE
        ) from error
    return read_salt(file)


def _letters(digest: bytes, count: int) -> str:
    return digest.hex()[:count].translate(str.maketrans("0123456789abcdef", "abcdefghijklmnop"))
