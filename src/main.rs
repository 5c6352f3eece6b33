//! ringtap
fn main() {}
