"""Used by every room: errors, records, capabilities, replies, schemas, redaction, files, fault points."""
