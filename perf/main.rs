//! The end-to-end lab.
fn main() {}
