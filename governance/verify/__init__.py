"""`headrace verify`: proves from the outside that nothing was lost, doubled or changed.

Everything here reads with other code than it checks: Kafka through confluent-kafka, Avro through fastavro, databases
through psycopg, tables through DuckDB. It takes names from contracts and connector files (declarations) and trusts no
counter, codec or offset logic of the pipeline. A check is made at a *cut*: the offsets that a table says it holds.
"""
