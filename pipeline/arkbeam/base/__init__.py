"""What every room uses: errors, records, schemas, redaction, files, named faults."""
