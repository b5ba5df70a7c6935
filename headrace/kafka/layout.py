"""Where things are in a Kafka record batch, format v2 ("magic 2"), as the protocol fixes it.

Format: https://kafka.apache.org/documentation/#messageformat. A batch is a header of 61 bytes, big endian, and records:

     0 base offset i64       12 leader epoch i32   17 crc32c u32 (of all after it)   23 last offset delta i32
     8 length i32 (after it) 16 magic i8           21 attributes i16                 27 first timestamp i64
    35 max timestamp i64     43 producer id i64    51 producer epoch i16             53 base sequence i32
    57 records i32           61 records, compressed as a whole when attributes say so

A record is length, attributes (1 byte, unused), timestamp delta, offset delta, key length, key, value length, value,
header count and headers (key length, key, value length, value); all numbers zigzag varints, a length of -1 is null.
"""

LOG_OVERHEAD = 12  # base offset and length, which the length does not count
HEADER_SIZE = 61
MIN_RECORD_SIZE = 7

# Positions in a batch's header.
LENGTH, LEADER_EPOCH, MAGIC, CRC, ATTRIBUTES, LAST_OFFSET_DELTA = 8, 12, 16, 17, 21, 23
FIRST_TIMESTAMP, MAX_TIMESTAMP, PRODUCER_ID, PRODUCER_EPOCH, SEQUENCE, RECORDS = 27, 35, 43, 51, 53, 57

# Bits of the attributes.
CODEC_MASK, LOG_APPEND_TIME, TRANSACTIONAL, CONTROL = 0x07, 0x08, 0x10, 0x20

# Codecs.
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4

# Type of the control record that ends an aborted transaction.
ABORT_MARKER = 0
