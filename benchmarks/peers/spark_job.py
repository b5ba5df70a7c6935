"""Kafka to Iceberg with Spark Structured Streaming."""

from __future__ import annotations

import json
import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as f
from pyspark.sql.avro.functions import from_avro

TABLE = "lake.bench.readings"


def main() -> None:
    asked = json.loads(sys.argv[1])
    settings = {
        "spark.driver.memory": "2g",
        "spark.jars": ",".join(asked["jars"]),
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "hadoop",
        "spark.sql.catalog.lake.warehouse": asked["warehouse"],
    }
    builder = SparkSession.builder.master("local[2]").appName("bench")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    source = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", asked["bootstrap"])
        .option("subscribe", asked["topic"])
        .option("startingOffsets", "earliest")
        .load()
    )
    # The five bytes before the Avro are Confluent's framing.
    reading = from_avro(f.expr("substring(value, 6)"), json.dumps(asked["schema"]), {"mode": "FAILFAST"})
    rows = source.select(reading.alias("r"), "partition", "offset").select("r.*", "partition", "offset")
    empty = spark.createDataFrame([], rows.schema)
    empty.writeTo(TABLE).using("iceberg").create()
    query = (
        rows.writeStream.format("iceberg")
        .outputMode("append")
        .trigger(processingTime=f"{asked['seconds']} seconds")
        .option("checkpointLocation", f"{asked['folder']}/checkpoint")
        .toTable(TABLE)
    )
    query.awaitTermination()


if __name__ == "__main__":
    main()
