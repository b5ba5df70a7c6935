"""The words that programs are written in and the layouts that the interpreters share. Numbers only.

A program is a table of operations of eight 64-bit words. In a table at rest COLUMN and SECOND are slots of columns and
JUMP is the index of an operation; bound to a batch all of them are addresses.
Each nesting level of arrays and maps has a record: how many items it holds, how many it has room for, how many of the
current block are to come (in encoding: where the current list ends), and the row of the level above they belong to.
Decoding also needs how many it held before the message, the fewest bytes of an item in a message, its bytes in columns
and how many items any message may have.
"""

OP_BYTES = 64
# Words of an operation. SECOND is the source addresses of strings, the branch chosen of unions, the level of lists.
CODE, COLUMN, SECOND, ARGUMENT, JUMP, LOW, HIGH, EXTRA = (8 * word for word in range(8))

# Operations whose first act is to read a varint come first.
OPTION, LONG, INT, STRING, BYTES, ENUM, DECIMAL, SCALED, ZONED, UNION, NUMBER, BLOCK = range(1, 13)
DOUBLE, FLOAT, BOOLEAN, FIXED, FIXED_DECIMAL, BRANCH, LIST, NEXT = range(13, 21)

LEVEL_BYTES = 64
CURSOR, CAPACITY, REMAINING, PARENT, SAVED, MINIMUM, WIDTH, FREE = (8 * word for word in range(8))

# A byte of a message can stand for a null of kilobytes. What a message may take in the columns of a level has an end
# that its own size says, so that what a call takes has one and no record is refused for its neighbours.
FREE_BYTES, BYTES_OF_A_BYTE = 1 << 16, 512

# Room for a number as text, by its bytes and beside them.
DIGITS_OF_A_BYTE, DIGITS_BESIDE = 3, 96

# Reasons, in the order of reasons.TEXTS.
(TRUNCATED, TRAILING, VARINT, UNION_INDEX, ENUM_INDEX, LENGTH, COUNT, UTF8, BOOLEAN_BYTE, RANGE, DIGITS, TIMESTAMP,
 TOO_LARGE) = range(1, 14)  # fmt: skip

# State of a decoding run: next message, rows made, bad messages, items wanted at the level that is full.
NEXT_MESSAGE, ROWS, BAD, WANTED = (8 * word for word in range(4))
BAD_BYTES = 24
