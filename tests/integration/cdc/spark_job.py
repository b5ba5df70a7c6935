"""Iceberg tables read by Spark and written as plain Parquet, one folder a table and way of reading."""

from __future__ import annotations

import json
import sys

from pyspark.sql import SparkSession


def main() -> None:
    asked = json.loads(sys.argv[1])
    settings = {
        "spark.driver.memory": "1g",
        "spark.jars": ",".join(asked["jars"]),
        "spark.ui.enabled": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    }
    builder = SparkSession.builder.master("local[2]").appName("read")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    for name, folder in asked["tables"].items():
        for way, options in asked["ways"].items():
            rows = spark.read.format("iceberg").options(**options).load(folder)
            rows.coalesce(1).write.parquet(f"{asked['out']}/{name}.{way}")
    spark.stop()


if __name__ == "__main__":
    main()
