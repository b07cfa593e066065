//! The one binary `wisp`.

fn main() {}
