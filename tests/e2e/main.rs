//! The promises, proven from outside on the real binary: one file for each.
