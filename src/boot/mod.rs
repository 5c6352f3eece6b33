//! Once, before the first packet: namespaces, the TAP, addresses and routes. May block, may fail with context.
