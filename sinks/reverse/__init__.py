"""Reverse ETL: rows of topics, kept current in business applications."""
