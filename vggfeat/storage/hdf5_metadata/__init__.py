"""Read the metadata of HDF5 files without libhdf5, which crashes and hangs on damaged ones.

Begin with `reader`: `open_metadata` gives groups, datasets, attributes, and where bytes lie.

A file that a stranger made, or a disk has damaged, must not end the process that opens it. libhdf5
2.0 ends by SIGSEGV or SIGFPE on a flipped byte, and runs for ever on others. A child process could
take its place, at 7 ms a fork, 50 ms where torch is loaded, and 0.3 s for a process of its own,
which callers with threads would need; and it would still allocate what a lying shape says. What a
cache needs of the format is small and specified, and read here in 2 ms, less than libhdf5 takes:
every address is checked against the file's size, every block against its checksum, no node is
visited twice, and the total is limited. What is not read (compression, extensible arrays, formats
before HDF5 1.6) is refused by name.
"""
