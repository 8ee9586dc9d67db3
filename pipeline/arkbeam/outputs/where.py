"""The condition of `--where`: SQL over the rows of an output, run by a DuckDB that can reach nothing else.

The rows are a table in memory. Files, the network and extensions are switched off, names of Python variables mean nothing,
and the settings are locked, before the condition is seen.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arkbeam.base.errors import ConfigError
from arkbeam.base.redaction import redact

MEMORY = "1GB"
_SETTINGS = {
    "threads": "2",
    "memory_limit": MEMORY,
    "temp_directory": "",
    "allow_persistent_secrets": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}


def select_rows(rows: pa.Table, condition: str) -> npt.NDArray[np.bool_]:
    """Return for each row whether a condition holds, such as `lang = 'zh' AND price < 5`. The table is named `output`.

    Raise ConfigError if DuckDB is missing, or says that the condition is wrong.
    """
    duckdb = _load_duckdb()
    number = _unused_name(rows.column_names)
    numbered = rows.append_column(number, pa.array(np.arange(rows.num_rows)))
    with duckdb.connect(":memory:", config=_SETTINGS) as connection:
        try:
            connection.register("output", numbered)
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            statements = connection.extract_statements(f"SELECT {number} FROM output WHERE (\n{condition}\n)")
            if len(statements) != 1:
                raise ConfigError("--where: it must be one condition, without ;")
            found = connection.execute(statements[0]).fetchnumpy()
        except duckdb.Error as error:
            raise ConfigError(f"--where: {redact(str(error), 500)}{_explain(str(error))}") from None
    return _to_mask(next(iter(found.values())), rows.num_rows)


def _explain(error: str) -> str:
    is_text = "type VARCHAR" in error
    return "; columns that were kept from CSV are texts: write CAST(price AS DOUBLE) < 20" if is_text else ""


def _to_mask(found: Any, count: int) -> npt.NDArray[np.bool_]:
    """Return a mask of row numbers. A condition with a UNION in it may yield anything: only numbers of rows count."""
    mask = np.zeros(count, np.bool_)
    if not np.issubdtype(np.asarray(found).dtype, np.integer):
        raise ConfigError("--where: it must be one condition for each row")
    numbers = np.asarray(found)
    mask[numbers[(numbers >= 0) & (numbers < count)]] = True
    return mask


def _unused_name(names: list[str]) -> str:
    taken = {name.lower() for name in names}
    return next(name for name in (f"row_number_{n}" for n in range(len(names) + 1)) if name not in taken)


def _load_duckdb() -> Any:
    try:
        import duckdb  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"--where needs more packages: pip install 'arkbeam[search]' ({error})") from None
    return duckdb
