"""What a person can do about a failed row, by the code of its failure."""

from fnmatch import fnmatchcase

# The first pattern that matches the code.
_ADVICE = (
    ("bad_json", "correct the line: it is not valid JSON"),
    ("not_an_object", "write each line as a JSON object"),
    ("bad_record", "correct the record, or set manifest.csv to the file's delimiter, quote and escape"),
    ("line_too_long", "shorten the line, or raise manifest.line_bytes_max"),
    ("bad_text", "give the column text in UTF-8; columns with media belong in manifest.columns.image or .video"),
    ("bad_id", "give the row an id of text or a whole number, of at most 1,024 characters"),
    ("no_input", "give the row a text or a medium, or remove it; check manifest.columns if many rows are affected"),
    ("bad_part", "correct the part that the message names"),
    ("bad_field", "correct the field that the message names"),
    ("too_many_parts", "split the row, or raise manifest.parts_max"),
    ("no_wording", "give the row its own instructions (manifest.columns.instructions)"),
    ("request_too_large", "use smaller media, or let the service fetch them (media.access)"),
    ("request_not_encodable", "correct the text: it is not valid Unicode"),
    ("row_missing", "name the manifest itself in manifest.uris if its rows have moved"),
    ("row_changed", "name the manifest in manifest.uris to embed the row as it is"),
    ("manifest_missing", "put the manifest back, or name it in manifest.uris"),
    ("not_bought", "run the same command again: it sends what is missing"),
    ("sparse_*", "ask for sparse vectors only on rows of text (model.sparse, manifest.columns.sparse)"),
    ("*_unsupported", "use another model version, or allow it with model.allow"),
    ("media_missing", "put the file in place, or correct its name in the manifest"),
    ("media_forbidden", "if it may be read, allow it: media.allowed_roots, media.allowed_hosts or media.schemes"),
    ("media_bad_*", "correct the URI in the manifest"),
    ("media_mime", "declare the type that the bytes have"),
    ("media_extension", "give the URL the ending of its format"),
    ("media_not_*", "use a format that the API accepts; media.fit.transcode converts many images"),
    ("media_unfit", "convert the image to JPEG or PNG"),
    ("media_too_large", "use a smaller file; media.fit.resize_max_pixels scales images down"),
    ("media_body_too_large", "use a smaller file, or let the service fetch it (media.access)"),
    ("media_too_many_pixels", "set media.fit.resize_max_pixels to scale images down"),
    ("media_too_small", "use a larger image"),
    ("media_too_slow", "save the medium again; or raise media.look_s"),
    ("media_encrypted", "use a medium without encryption"),
    ("media_changed", "run again when the file no longer changes"),
    ("media_unsigned", "inline the medium (media.access)"),
    ("media_empty", "replace the file: it has no bytes"),
    ("media_truncated", "replace the file: its end is missing"),
    ("media_damaged", "replace the file: it is damaged"),
    ("media_unreadable", "check that the file can be read, then run again"),
    ("media_un*", "check that the server can be reached, then run again"),
    ("media_timeout", "run again; or raise media.http_timeout_s"),
    ("media_status", "check the URL; the message has the server's answer"),
    ("media_redirects", "write the final URL into the manifest"),
    ("*Sensitive*", "the service rejects the content: change it or leave the row out"),
    ("*Risk*", "the service rejects the content: change it or leave the row out"),
    ("OutofContextError", "shorten the row: it is longer than the model's context"),
    ("Invalid*", "correct what the message names; --retry-failed sends the row again"),
    ("Missing*", "correct what the message names; --retry-failed sends the row again"),
)
_OTHER = "see the message; run the same command again to retry, with --retry-failed if the service rejected the row"


def advise(code: str) -> str:
    """Return what to do about rows that failed with a code."""
    return next((advice for pattern, advice in _ADVICE if fnmatchcase(code, pattern)), _OTHER)
