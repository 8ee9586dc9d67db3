"""The four stages, Read, Plan, Embed and Publish, as functions over tables: no Beam here."""
