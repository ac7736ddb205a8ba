"""What this project claims of itself, measured and tried out.

bench.py       speed and memory, beside the usual way of writing L2KD and beside an earlier version
               bench_cases.py: what is measured; bench_sides.py: how each side does it
faults.py      runs that are killed, damaged, out of disk, or started twice
fuzz.py        garbage for every reader and every metric; readers.py: the readers and their files
"""
