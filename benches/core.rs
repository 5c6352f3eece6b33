//! Criterion benches of the pure code.
fn main() {}
