"""Exposition: the live dashboard, the HTTP API and ingest, SQL over the tables. Reads; changes nothing by itself."""
