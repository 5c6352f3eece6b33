//! glibc's `getopt_long`, as far as a caller can see it.
