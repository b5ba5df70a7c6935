"""For maintainers: write `jars.lock` anew with real Maven. `python -m benchmarks.peers.lock_jars`; needs `mvn`."""

from __future__ import annotations

from benchmarks.peers.environment import LOCK
from stack.lock_jars import WORKER_GIVES, resolve

ICEBERG, SPARK, HADOOP, POSTGRES = "1.12.0", "4.1.1", "3.4.1", "42.7.4"
HEAD = """\
# What the peers' Java is made of: set, group:artifact:version[:classifier[@packaging]], SHA-256.
# Written with real Maven by `python -m benchmarks.peers.lock_jars`; checked at download. Do not edit by hand.
"""
ROOTS = {
    "connect": [
        f"org.apache.iceberg:iceberg-kafka-connect:{ICEBERG}",
        f"org.apache.iceberg:iceberg-parquet:{ICEBERG}",
        f"org.apache.iceberg:iceberg-data:{ICEBERG}",
        f"org.apache.hadoop:hadoop-client-api:{HADOOP}",
        f"org.apache.hadoop:hadoop-client-runtime:{HADOOP}",
        f"org.postgresql:postgresql:{POSTGRES}",
    ],
    "spark": [
        f"org.apache.spark:spark-sql-kafka-0-10_2.13:{SPARK}",
        f"org.apache.spark:spark-avro_2.13:{SPARK}",
        f"org.apache.iceberg:iceberg-spark-runtime-4.1_2.13:{ICEBERG}",
    ],
}
# What the worker, or the wheel pyspark, brings already.
LEFT_OUT = {
    "connect": WORKER_GIVES,
    "spark": {
        "com.google.code.findbugs:jsr305",
        "org.apache.hadoop:hadoop-client-api",
        "org.apache.hadoop:hadoop-client-runtime",
        "org.lz4:lz4-java",
        "org.scala-lang.modules:scala-parallel-collections_2.13",
        "org.scala-lang:scala-library",
        "org.slf4j:slf4j-api",
        "org.tukaani:xz",
        "org.xerial.snappy:snappy-java",
    },
}


def main() -> None:
    lines = []
    for name, roots in ROOTS.items():
        for spec, digest in sorted(resolve(roots).items()):
            if ":".join(spec.split(":")[:2]) not in LEFT_OUT[name]:
                lines.append(f"{name} {spec} {digest}\n")
    LOCK.write_text(HEAD + "".join(lines))


if __name__ == "__main__":
    main()
